#include "sessions/candidates.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "errors.h"
#include "sessions/compatibility.h"
#include "sessions/engine_session.h"
#include "sessions/openvino.h"
#include "text.h"

namespace rare_trt {
namespace {

constexpr const char* kEngineBackend = "tensorrt";

// The order of engines: those that run most scans first, then the fastest.
auto rank(const EngineEntry& entry) {
  const std::vector<std::string> precisions = {"int8", "fp16", "fp32"};
  const auto at = std::find(precisions.begin(), precisions.end(), entry.precision);
  const BuilderOptions& options = entry.options;
  return std::make_tuple(options.static_shapes, at - precisions.begin(),
                         options.hardware_compatibility != "none", options.version_compatible,
                         options.tf32);
}

}  // namespace

SessionCandidates::SessionCandidates(const Package& package, Backend backend, const Cache& cache,
                                     std::uint64_t gpu_memory_limit, Warn warn)
    : package_(package),
      backend_(backend),
      cache_(cache),
      gpu_memory_limit_(gpu_memory_limit),
      warn_(std::move(warn)),
      // Throws for an invalid number before anything is loaded.
      threads_(thread_count()) {}

std::vector<Candidate> SessionCandidates::select(int route) {
  std::vector<Candidate> found;
  if (backend_ != Backend::openvino) found = engines(route);
  if (backend_ != Backend::tensorrt) {
    for (auto& candidate : graphs(route)) found.push_back(std::move(candidate));
  }
  return found;
}

std::vector<Candidate> SessionCandidates::graphs(int route) const {
  const GraphEntry& portable = package_.portable_graph(route);
  const auto candidate = [this](const GraphEntry& entry, const std::string& arithmetic) {
    return Candidate{"openvino " + arithmetic, arithmetic, [this, &entry, arithmetic] {
                       return open_openvino_session(package_, entry, cache_, needs_bf16(arithmetic),
                                                    threads_);
                     }};
  };
  std::vector<std::string> measured;
  for (const CalibrationEntry& entry : package_.manifest.calibration) {
    if (entry.route == route) measured = entry.variants;
  }
  std::vector<std::string> capabilities;
  if (!measured.empty()) capabilities = openvino_capabilities();
  const auto has = [&](const char* capability) {
    return std::find(capabilities.begin(), capabilities.end(), capability) != capabilities.end();
  };
  std::vector<Candidate> found;
  for (const std::string& arithmetic : measured) {
    // Variants after the portable graph are slower than it.
    if (arithmetic == portable.precision) break;
    const std::string precision = graph_precision(arithmetic);
    if (precision == "int8" && !has("INT8")) continue;
    if (needs_bf16(arithmetic) && !has("BF16")) continue;
    found.push_back(candidate(package_.graph(route, precision), arithmetic));
  }
  found.push_back(candidate(portable, portable.precision));
  return found;
}

std::vector<Candidate> SessionCandidates::engines(int route) {
  std::vector<const EngineEntry*> runnable;
  std::vector<std::string> reasons;
  for (const EngineEntry& entry : package_.manifest.engines) {
    if (entry.route != route) continue;
    if (!machine_) machine_ = this_machine();
    const std::string reason = incompatibility(entry, package_.manifest, *machine_);
    if (reason.empty() && entry.backend == kEngineBackend) {
      runnable.push_back(&entry);
    } else if (backend_ == Backend::automatic || entry.backend == kEngineBackend) {
      reasons.push_back(reason);
    }
  }
  if (runnable.empty() && backend_ == Backend::tensorrt) {
    throw BackendError(text("tensorrt cannot run route ", route, " on this machine (",
                            reasons.empty()
                                ? "the package has no engine for it: run `rare-trt build`"
                                : reasons.front(),
                            "); `rare-trt doctor` lists the usable backends"));
  }
  if (runnable.empty() && !reasons.empty() && !warned_) {
    warned_ = true;
    warn_("no engine of the package can run on this machine, so OpenVINO is used: " +
          reasons.front());
  }
  // Later entries were built later, and sorting keeps the order of equals.
  std::reverse(runnable.begin(), runnable.end());
  std::stable_sort(runnable.begin(), runnable.end(),
                   [](const auto* a, const auto* b) { return rank(*a) < rank(*b); });
  std::vector<Candidate> found;
  for (const EngineEntry* entry : runnable) {
    found.push_back({entry->backend + " " + entry->precision, entry->precision, [this, entry] {
                       if (!host_) host_ = std::make_shared<EngineHost>(gpu_memory_limit_, warn_);
                       return std::make_unique<EngineSession>(host_, package_, *entry);
                     }});
  }
  return found;
}

}  // namespace rare_trt
