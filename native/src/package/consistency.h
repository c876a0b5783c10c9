// Rules that the schema cannot express: entries of a manifest that must agree with each other.
#pragma once

#include <optional>
#include <string>

#include "package/manifest.h"

namespace rare_trt {

// The first contradiction in `manifest`, as part of a sentence; none where there is no
// contradiction.
std::optional<std::string> contradiction(const Manifest& manifest);

}  // namespace rare_trt
