// Rules that the schema cannot express: parts of a manifest that must agree with each other.
#pragma once

#include <optional>
#include <string>

#include "package/manifest.h"

namespace rare_trt {

// Why `manifest` contradicts itself; none where it does not.
std::optional<std::string> first_fault(const Manifest& manifest);

}  // namespace rare_trt
