// Sessions run one route's graph on one backend: seven arrays in, labels out.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace rare_trt {

// The graph's inputs in its own order: image [1, c, i, j, k], in_i [I, i], ..., out_k [ok, K].
constexpr std::array<const char*, 7> kInputNames = {"image", "in_i",  "in_j", "in_k",
                                                    "out_i", "out_j", "out_k"};
constexpr const char* kLabelsName = "labels";

struct Tensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// Receives one sentence where a backend is replaced or slower than it could be, or where the cache
// cannot be used.
using Warn = std::function<void(const std::string&)>;

using Inputs = std::array<Tensor, kInputNames.size()>;

// Shape [oi, oj, ok] of the labels of `inputs`: the rows of out_i, out_j and out_k.
inline std::array<std::int64_t, 3> labels_shape(const Inputs& inputs) {
  return {inputs[4].shape[0], inputs[5].shape[0], inputs[6].shape[0]};
}

// One route, ready to run. Safe to use from several threads.
class Session {
 public:
  // `golden_runs`: how often each golden vector is run. After so many runs of one shape the session
  // no longer changes how it runs.
  Session(std::string backend, std::string arithmetic, std::int64_t golden_runs)
      : backend(std::move(backend)), arithmetic(std::move(arithmetic)), golden_runs(golden_runs) {}
  virtual ~Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Labels [oi, oj, ok]. Throws ShapeError where the session was not built for the inputs' shapes,
  // BackendError where the run failed.
  virtual std::vector<std::uint8_t> run(const Inputs& inputs) = 0;

  // Names everything that its labels depend on.
  virtual const std::string& identity() const = 0;

  const std::string backend;
  const std::string arithmetic;
  const std::int64_t golden_runs;
};

}  // namespace rare_trt
