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

// Whether `here` is the release that `built` names: some libraries of a release give three numbers,
// some four.
bool same_release(const std::string& built, const std::string& here) {
  const auto asked = version_numbers(built), found = version_numbers(here);
  const std::size_t count = std::min(asked.size(), found.size());
  return count >= 3 && std::equal(asked.begin(), asked.begin() + static_cast<std::ptrdiff_t>(count),
                                  found.begin());
}

std::string other_gpu(const EngineEntry& entry, const Machine& machine) {
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

std::string obstacle(const EngineEntry& entry, const Manifest& manifest, const Machine& machine) {
  if (!is_of_package(entry, manifest)) {
    return "built from another graph than the package holds: build it again";
  }
  if (entry.precision == "fp16" && !manifest.fp16_holds(entry.route)) {
    return "calibration found that fp16 exceeds the Dice budget: build it with --precision fp32";
  }
  if (entry.platform != machine.platform) {
    return text("built for ", entry.platform, "; this is ", machine.platform, ": build it here");
  }
  const auto library = machine.libraries.find(entry.backend);
  if (library == machine.libraries.end()) return machine.no_library.at(entry.backend);
  // Version-compatible engines too: on another release they need the lean runtime of their own,
  // which the Python runtime loads and this library does not.
  if (!same_release(entry.library, library->second)) {
    return text("built with ", entry.backend, " ", entry.library, "; this machine has ",
                library->second, ": build it again");
  }
  return other_gpu(entry, machine);
}

}  // namespace rare_trt
