#include "package/manifest.h"

#include <algorithm>

#include "storage/files.h"

namespace rare_trt {

std::string Manifest::graph_sha256(const GraphEntry& graph) const {
  return sha256_hex(files.at(graph.file).sha256 + files.at(graph.weights).sha256);
}

bool is_fp16_within_budget(const Manifest& manifest, int route) {
  const auto& entries = manifest.calibration;
  return std::all_of(entries.begin(), entries.end(), [&](const CalibrationEntry& entry) {
    const auto& kept = entry.variants;
    return entry.route != route || std::find(kept.begin(), kept.end(), "fp16") != kept.end();
  });
}

std::string graph_precision(const std::string& arithmetic) {
  return arithmetic.substr(0, arithmetic.find('+'));
}

bool needs_bf16(const std::string& arithmetic) {
  return arithmetic.find("+bf16") != std::string::npos;
}

}  // namespace rare_trt
