// Intensity normalisation, on the host and before any resampling.
#pragma once

#include <array>
#include <vector>

#include "scan/voxels.h"

namespace rare_trt {

// Clip to two percentiles, then centre and scale by the foreground's mean and deviation.
//
// The foreground is every voxel at least `foreground_share` of the way from the lower percentile to
// the upper one; so the rule gives the same result for any gain and offset of the scanner.
struct IntensityRule {
  std::array<double, 2> clip_percentiles;
  double foreground_share;
};

// An image [channel, i, j, k], k fastest.
struct Image {
  std::int64_t channels;
  Shape shape;
  std::vector<float> values;
};

// Voxels [i, j, k] of each channel -> float32, each channel apart. Throws ScanError for a channel
// without contrast.
Image normalise(const Voxels& voxels, const IntensityRule& rule);

}  // namespace rare_trt
