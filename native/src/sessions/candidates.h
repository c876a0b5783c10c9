// Which sessions can answer a route on this machine, best first.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "package/reading.h"
#include "sessions/tensorrt/tensorrt.h"
#include "storage/cache.h"

namespace rare_trt {

enum class Backend { automatic, openvino, tensorrt };

// A session that could answer, not opened yet.
struct Candidate {
  std::string name;
  std::string arithmetic;
  std::function<std::unique_ptr<Session>()> open;
};

// Opens sessions of one package.
//
// Engines come before OpenVINO, dynamic shapes before static ones, lower precisions before higher
// ones, and of engines alike the one built last. One thread at a time may use it.
class Choice {
 public:
  Choice(const Package& package, Backend backend, const Cache& cache,
         std::uint64_t gpu_memory_limit, Warn warn);

  // What can answer `route`, best first; throws BackendError where nothing can.
  std::vector<Candidate> candidates(int route);

 private:
  // The portable graph, and before it what was measured to hold the package's budget and is faster,
  // as far as this CPU can compute it.
  std::vector<Candidate> graphs(int route) const;
  std::vector<Candidate> engines(int route);

  const Package& package_;
  Backend backend_;
  const Cache& cache_;
  std::uint64_t gpu_memory_limit_;
  Warn warn_;
  std::optional<Machine> machine_;
  std::shared_ptr<EngineHost> host_;
  bool warned_ = false;
};

}  // namespace rare_trt
