// The sessions of one package: opened when a route first needs them, verified once, and replaced by
// the next best where one fails.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "sessions/candidates.h"

namespace rare_trt {

// Sessions by route, best first.
//
// Safe to use from several threads. A process that is forked after the first run gets an error.
class SessionPool {
 public:
  using Work = std::function<void(Session&)>;

  SessionPool(const Package& package, Backend backend, std::uint64_t gpu_memory_limit, Warn warn);

  // Calls `work` with the best session of `route`; adds the time of loading to `load_ms`. A session
  // that throws BackendError is replaced by the next one: for good, unless only the shapes of this
  // scan did not fit. Throws BackendError where the last one fails too.
  void run(int route, const Work& work, double& load_ms);

 private:
  // A candidate, and its session once it was opened.
  struct Entry {
    Candidate candidate;
    std::shared_ptr<Session> session;
    bool passed_over = false;
  };

  std::vector<Entry*> candidates_of(int route);
  std::shared_ptr<Session> open(int route, Entry& entry);
  void pass_over(int route, Entry& failed, const BackendError& error, const Entry& following);

  const Package& package_;
  Cache cache_;
  Warn warn_;
  SessionCandidates candidates_;
  std::atomic<pid_t> used_in_ = 0;
  std::mutex mutex_;
  std::map<int, std::list<Entry>> entries_;
};

}  // namespace rare_trt
