#include "scan/intensity.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "constants.h"
#include "scan/numeric.h"
#include "text.h"

namespace rare_trt {
namespace {

template <class Stored, class Value>
std::vector<Value> gather(const Voxels& voxels, std::int64_t channel) {
  const auto [ni, nj, nk] = voxels.shape;
  std::vector<Value> values(static_cast<std::size_t>(ni * nj * nk));
  auto* next = values.data();
  const std::byte* from = voxels.data + channel * voxels.channel_stride;
  for (std::int64_t i = 0; i < ni; ++i) {
    for (std::int64_t j = 0; j < nj; ++j) {
      const std::byte* row = from + i * voxels.strides[0] + j * voxels.strides[1];
      for (std::int64_t k = 0; k < nk; ++k) {
        Stored stored;
        // Copied, since the caller's voxels may lie at any address.
        std::memcpy(&stored, row + k * voxels.strides[2], sizeof stored);
        *next++ = static_cast<Value>(stored);
      }
    }
  }
  return values;
}

// Subtracts and divides in double and stores in Value, as numpy does with its own scalars.
template <class Value>
void centre(std::vector<Value>& values, double share) {
  std::vector<Value> foreground;
  std::copy_if(values.begin(), values.end(), std::back_inserter(foreground),
               [&](Value value) { return value >= static_cast<Value>(share); });
  if (foreground.empty()) {
    throw ScanError(
        "the voxels have no contrast (none is foreground); expected an image: check the scan");
  }
  const double count = static_cast<double>(foreground.size());
  const double mean = wide_sum(foreground) / count;
  std::vector<double> squares(foreground.size());
  std::transform(foreground.begin(), foreground.end(), squares.begin(),
                 [&](Value value) { return (value - mean) * (value - mean); });
  const double deviation = std::sqrt(wide_sum(squares) / count);
  const double scale = std::max(deviation, kMinDeviation);
  for (Value& value : values) {
    value = static_cast<Value>(value - mean);
    value = static_cast<Value>(value / scale);
  }
}

template <class Value>
void normalise_channel(std::vector<Value>& values, const IntensityRule& rule) {
  std::vector<Value> sorted = values;
  const Percentile lower = percentile(sorted, rule.clip_percentiles[0] / 100.0);
  const Percentile upper = percentile(sorted, rule.clip_percentiles[1] / 100.0);
  // Counted from the voxel below the lower percentile, which is exact, neither percentile is
  // rounded to the steps of a large offset. What lies beyond, however far, is cut off before.
  const double low = lower.counted_from(lower.below), high = upper.counted_from(lower.below);
  if (!(high > low) || !(high <= static_cast<double>(std::numeric_limits<Value>::max()))) {
    throw ScanError(text("the voxels have no contrast to compute with (percentiles ",
                         number(rule.clip_percentiles[0]), " and ",
                         number(rule.clip_percentiles[1]), " are ", number(lower.counted_from(0.0)),
                         " and ", number(upper.counted_from(0.0)),
                         "); expected an image: check the scan"));
  }
  const auto zero = static_cast<Value>(lower.below), most = static_cast<Value>(upper.above);
  for (Value& value : values) value = std::clamp(value, zero, most) - zero;
  const auto bottom = static_cast<Value>(low), top = static_cast<Value>(high);
  const auto range = static_cast<Value>(high - low);
  for (Value& value : values) value = (std::clamp(value, bottom, top) - bottom) / range;
  centre(values, rule.foreground_share);
}

}  // namespace

Image normalise(const Voxels& voxels, const IntensityRule& rule) {
  Image image{voxels.channels, voxels.shape, {}};
  const auto [ni, nj, nk] = voxels.shape;
  image.values.reserve(static_cast<std::size_t>(voxels.channels * ni * nj * nk));
  for (std::int64_t channel = 0; channel < voxels.channels; ++channel) {
    with_type(voxels.dtype, [&](auto stored) {
      using Stored = decltype(stored);
      // float32 holds 24 bits: wider types are brought to 0..1 first, or an offset would use up
      // the digits of the contrast.
      using Value = std::conditional_t<(sizeof(Stored) > 4 ||
                                        (std::is_integral_v<Stored> && sizeof(Stored) == 4)),
                                       double, float>;
      auto values = gather<Stored, Value>(voxels, channel);
      normalise_channel(values, rule);
      image.values.insert(image.values.end(), values.begin(), values.end());
    });
  }
  return image;
}

}  // namespace rare_trt
