// Sums and percentiles to the last bit as numpy forms them, so that a scan normalised here is the
// scan that the Python runtime would have shown the network.
#pragma once

#include <cstddef>
#include <vector>

namespace rare_trt {

// The sum of doubles, pairwise in numpy's blocks.
double pairwise_sum(const double* values, std::size_t count);

// numpy's sum(dtype=float64): narrower values are widened a buffer at a time.
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
