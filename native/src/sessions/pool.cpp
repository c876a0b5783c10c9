#include "sessions/pool.h"

#include <utility>

#include "errors.h"
#include "sessions/golden.h"
#include "sessions/openvino.h"
#include "stopwatch.h"
#include "text.h"

namespace rare_trt {

SessionPool::SessionPool(const Package& package, Backend backend, std::uint64_t gpu_memory_limit,
                         Warn warn)
    : package_(package),
      cache_(warn),
      warn_(std::move(warn)),
      candidates_(package_, backend, cache_, gpu_memory_limit, warn_) {}

void SessionPool::run(int route, const Work& work, double& load_ms) {
  used_in_ = this_process(used_in_);
  std::vector<Entry*> entries;
  {
    const Stopwatch clock(load_ms);
    entries = candidates_of(route);
  }
  for (std::size_t at = 0; at < entries.size(); ++at) {
    try {
      std::shared_ptr<Session> session;
      {
        const Stopwatch clock(load_ms);
        session = open(route, *entries[at]);
      }
      work(*session);
      return;
    } catch (const BackendError& error) {
      if (at + 1 == entries.size()) throw;
      pass_over(route, *entries[at], error, *entries[at + 1]);
    }
  }
}

std::vector<SessionPool::Entry*> SessionPool::candidates_of(int route) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (entries_.count(route) == 0) {
    for (auto& candidate : candidates_.select(route)) {
      entries_[route].push_back({std::move(candidate), nullptr});
    }
  }
  std::vector<Entry*> found;
  for (Entry& entry : entries_[route]) {
    if (!entry.passed_over) found.push_back(&entry);
  }
  return found;
}

std::shared_ptr<Session> SessionPool::open(int route, Entry& entry) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!entry.session) {
    std::shared_ptr<Session> session = entry.candidate.open();
    check_golden_vectors_once(*session, package_, route, cache_);
    entry.session = std::move(session);
  }
  return entry.session;
}

void SessionPool::pass_over(int route, Entry& failed, const BackendError& error,
                            const Entry& following) {
  std::string what = failed.candidate.name;
  if (dynamic_cast<const ShapeError*>(&error) != nullptr) {
    what += " cannot run this scan";
  } else {
    what += text(" is not used for route ", route, " any more");
    const std::lock_guard<std::mutex> lock(mutex_);
    failed.passed_over = true;
    failed.session.reset();
  }
  warn_(text(what, "; ", following.candidate.name, " runs: ", error.what()));
}

}  // namespace rare_trt
