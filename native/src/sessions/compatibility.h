// Whether an engine of a package can run on a machine, and if not, why.
#pragma once

#include <string>

#include "package/manifest.h"
#include "sessions/machine.h"

namespace rare_trt {

// What keeps the engine `entry` from running on `machine`; empty where nothing does.
std::string obstacle(const EngineEntry& entry, const Manifest& manifest, const Machine& machine);

}  // namespace rare_trt
