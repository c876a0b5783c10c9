// Times of the stages of a run.
#pragma once

#include <chrono>

namespace rare_trt {

// Adds the milliseconds of its lifetime to a number.
class Stopwatch {
 public:
  explicit Stopwatch(double& milliseconds) : milliseconds_(milliseconds) {}
  ~Stopwatch() {
    const std::chrono::duration<double, std::milli> spent = Clock::now() - start_;
    milliseconds_ += spent.count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  using Clock = std::chrono::steady_clock;

  double& milliseconds_;
  Clock::time_point start_ = Clock::now();
};

struct Timings {
  double prepare = 0, plan = 0, load = 0, inputs = 0, graph = 0, labels = 0, total = 0;
};

}  // namespace rare_trt
