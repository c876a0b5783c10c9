#include "scan/numeric.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace rare_trt {
namespace {

// numpy's pairwise summation: runs of this many values are added in eight lanes.
constexpr std::size_t kRun = 128;
constexpr std::size_t kLanes = 8;

// Values that numpy casts at once.
constexpr std::size_t kBuffer = 8192;

double run_sum(const double* values, std::size_t count) {
  double sum = 0.0;
  std::size_t at = 0;
  if (count >= kLanes) {
    std::array<double, kLanes> lane;
    std::copy_n(values, kLanes, lane.begin());
    for (at = kLanes; at + kLanes <= count; at += kLanes) {
      for (std::size_t i = 0; i < kLanes; ++i) lane[i] += values[at + i];
    }
    sum = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
  }
  for (; at < count; ++at) sum += values[at];
  return sum;
}

}  // namespace

double round_decimals(double value, std::int64_t decimals) {
  double scale = 1.0;
  for (std::int64_t at = 0; at < decimals; ++at) scale *= 10.0;
  return std::nearbyint(value * scale) / scale;
}

double pairwise_sum(const double* values, std::size_t count) {
  if (count <= kRun) return run_sum(values, count);
  const std::size_t half = count / 2 - count / 2 % kLanes;
  return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
}

double wide_sum(const std::vector<float>& values) {
  std::array<double, kBuffer> buffer;
  double sum = 0.0;
  for (std::size_t start = 0; start < values.size(); start += kBuffer) {
    const std::size_t count = std::min(kBuffer, values.size() - start);
    std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(start), count, buffer.begin());
    sum += pairwise_sum(buffer.data(), count);
  }
  return sum;
}

double wide_sum(const std::vector<double>& values) {
  return pairwise_sum(values.data(), values.size());
}

template <class Value>
Percentile percentile(std::vector<Value>& values, double share) {
  const double last = static_cast<double>(values.size() - 1);
  const double place = last * share;
  const double rank = std::floor(place);
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(rank);
  std::nth_element(values.begin(), at, values.end());
  const Value above = at + 1 == values.end() ? *at : *std::min_element(at + 1, values.end());
  return {static_cast<double>(*at), static_cast<double>(above), place - rank};
}

template Percentile percentile(std::vector<float>&, double);
template Percentile percentile(std::vector<double>&, double);

}  // namespace rare_trt
