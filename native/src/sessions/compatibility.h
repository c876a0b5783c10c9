// Whether an engine of a package can run on a machine, and if not, why.
#pragma once

#include <string>

#include "package/manifest.h"
#include "sessions/machine.h"

namespace rare_trt {

// The reason why the engine `entry` cannot run on `machine`; empty where it can.
std::string incompatibility(const EngineEntry& entry, const Manifest& manifest,
                            const Machine& machine);

}  // namespace rare_trt
