// The published schema of manifest.json.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace rare_trt {

// How `values` differ from the schema; empty where they fit.
std::string schema_fault(const nlohmann::json& values);

}  // namespace rare_trt
