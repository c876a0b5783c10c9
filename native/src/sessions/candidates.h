// The sessions that can run a route on this machine, best first.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "package/reading.h"
#include "sessions/machine.h"
#include "sessions/session.h"
#include "storage/cache.h"

namespace rare_trt {

class EngineHost;

enum class Backend { automatic, openvino, tensorrt };

// A session that can run a route and is not opened yet.
struct Candidate {
  std::string name;
  std::string arithmetic;
  std::function<std::unique_ptr<Session>()> open;
};

// Selects and opens sessions of one package.
//
// Engines come before OpenVINO, dynamic shapes before static ones, lower precisions before higher
// ones, and of otherwise equal engines the newest first. Not safe to use from several threads at
// once.
class SessionCandidates {
 public:
  SessionCandidates(const Package& package, Backend backend, const Cache& cache,
                    std::uint64_t gpu_memory_limit, Warn warn);

  // The sessions to try for `route`, best first; throws BackendError without any.
  std::vector<Candidate> select(int route);

 private:
  // The portable graph, after the faster variants that keep the package's Dice budget and that this
  // CPU supports.
  std::vector<Candidate> graphs(int route) const;
  std::vector<Candidate> engines(int route);

  const Package& package_;
  Backend backend_;
  const Cache& cache_;
  std::uint64_t gpu_memory_limit_;
  Warn warn_;
  std::optional<int> threads_;
  std::optional<Machine> machine_;
  std::shared_ptr<EngineHost> host_;
  bool warned_ = false;
};

}  // namespace rare_trt
