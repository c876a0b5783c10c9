#include "sessions/compatibility.h"

#include <algorithm>

#include "text.h"

namespace rare_trt {
namespace {

bool is_of_package(const EngineEntry& entry, const Manifest& manifest) {
  return std::any_of(manifest.graphs.begin(), manifest.graphs.end(), [&](const GraphEntry& graph) {
    return graph.route == entry.route && graph.precision == entry.precision &&
           manifest.graph_sha256(graph) == entry.graph_sha256;
  });
}

// Whether both are the same release: some libraries report three of its numbers, some four.
bool same_release(const std::string& one, const std::string& other) {
  const auto a = version_numbers(one), b = version_numbers(other);
  const std::size_t count = std::min(a.size(), b.size());
  return count >= 3 &&
         std::equal(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(count), b.begin());
}

std::string gpu_mismatch(const EngineEntry& entry, const Machine& machine) {
  if (!machine.gpu) return machine.no_gpu;
  const Gpu& gpu = *machine.gpu;
  const std::string& compatibility = entry.options.hardware_compatibility;
  const std::vector<int> ampere = {8, 0};
  if (compatibility == "ampere_plus" && version_numbers(gpu.compute_capability) >= ampere)
    return "";
  const auto& known = entry.compute_capabilities;
  if (std::find(known.begin(), known.end(), gpu.compute_capability) == known.end()) {
    std::string names;
    for (const auto& name : known) names += (names.empty() ? "" : ", ") + name;
    return text("built for compute capability ", names, "; ", gpu.name, " has ",
                gpu.compute_capability, ": build it here");
  }
  if (entry.backend == "tensorrt" && compatibility == "none" && gpu.name != entry.gpu) {
    return text("built on ", entry.gpu, "; this is ", gpu.name, ": build it here");
  }
  return "";
}

}  // namespace

std::string incompatibility(const EngineEntry& entry, const Manifest& manifest,
                            const Machine& machine) {
  if (!is_of_package(entry, manifest)) {
    return "built from another graph than the package holds: build it again";
  }
  if (entry.precision == "fp16" && !is_fp16_within_budget(manifest, entry.route)) {
    return "calibration found that fp16 exceeds the Dice budget: build it with --precision fp32";
  }
  if (entry.platform != machine.platform) {
    return text("built for ", entry.platform, "; this is ", machine.platform, ": build it here");
  }
  const auto library = machine.libraries.find(entry.backend);
  if (library == machine.libraries.end()) return machine.no_library.at(entry.backend);
  // So must version-compatible engines: on another release they need their own lean runtime, which
  // this library does not load.
  if (!same_release(entry.library, library->second)) {
    return text("built with ", entry.backend, " ", entry.library, "; this machine has ",
                library->second, ": build it again");
  }
  return gpu_mismatch(entry, machine);
}

}  // namespace rare_trt
