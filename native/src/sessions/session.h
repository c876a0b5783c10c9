// Sessions run one route's graph on one backend: seven arrays in, labels out.
#pragma once

#include <array>
#include <cstdint>
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

using Inputs = std::array<Tensor, kInputNames.size()>;

// Labels [oi, oj, ok] of `inputs`: as many as out_i, out_j and out_k have rows.
inline std::array<std::int64_t, 3> answer_shape(const Inputs& inputs) {
  return {inputs[4].shape[0], inputs[5].shape[0], inputs[6].shape[0]};
}

// One route, ready to run, safe from threads.
class Session {
 public:
  // `proof_runs`: after how many runs of one shape nothing about the way it runs changes any more.
  Session(std::string backend, std::string arithmetic, int proof_runs)
      : backend(std::move(backend)), arithmetic(std::move(arithmetic)), proof_runs(proof_runs) {}
  virtual ~Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Labels [oi, oj, ok]. Throws ShapeError where the session was not built for the inputs' shapes,
  // BackendError where the run failed.
  virtual std::vector<std::uint8_t> run(const Inputs& inputs) = 0;

  // Names all that its answers depend on.
  virtual const std::string& identity() const = 0;

  const std::string backend;
  const std::string arithmetic;
  const int proof_runs;
};

}  // namespace rare_trt
