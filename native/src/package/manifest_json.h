// The manifest from JSON.
//
// The file is first checked against rare_trt/package/manifest.schema.json, which is built into the
// library, so that the types of manifest.h are built from values of the right kind; then the rules
// of consistency.h are checked.
#pragma once

#include <string_view>

#include "package/manifest.h"

namespace rare_trt {

// The manifest in `data`; throws PackageError that names the fault.
Manifest manifest_from_json(std::string_view data);

}  // namespace rare_trt
