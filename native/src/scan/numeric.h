// Sums, percentiles and rounding as numpy computes them, to the last bit: the network's input is
// the same float32 as in the Python runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rare_trt {

// `value` rounded to `decimals` (at most 22) as numpy rounds.
double round_decimals(double value, std::int64_t decimals);

// The sum of doubles, pairwise in numpy's blocks.
double pairwise_sum(const double* values, std::size_t count);

// As numpy's sum(dtype=float64), which widens narrower values one buffer at a time.
double wide_sum(const std::vector<float>& values);
double wide_sum(const std::vector<double>& values);

// A percentile: `share` of the way from one value to the next larger one.
struct Percentile {
  double below;
  double above;
  double share;

  // The percentile, linear between the two, counted from `zero`.
  double counted_from(double zero) const { return (below - zero) + (above - below) * share; }
};

// The percentile `share` (0 to 1). Reorders `values`, which are not empty.
template <class Value>
Percentile percentile(std::vector<Value>& values, double share);

}  // namespace rare_trt
