// The out-of-distribution check of labels: how far their shape and the intensities under them lie
// from those of the labels that the network finds in training scans.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "scan/intensity.h"

namespace rare_trt {

// Statistics of training's labels: their mean and deviation, the rows of a lower triangle by which
// they less their mean become uncorrelated and of deviation 1, and the largest root mean square of
// the result that is accepted.
struct Gaussian {
  std::vector<double> mean;
  std::vector<double> deviation;
  std::vector<std::vector<double>> whitening;
  double limit;

  // The Mahalanobis distance of `values` per statistic (root mean square).
  double distance(const std::vector<double>& values) const;
};

// The labels found in training scans of one route.
struct RouteLabelDistribution {
  std::int64_t route;
  Gaussian shape;
  Gaussian content;
};

// Statistics per label, per pair of labels that follow each other, and per label and channel.
constexpr std::size_t kShapeStatistics = 6;
constexpr std::size_t kPositionStatistics = 3;
constexpr std::size_t kContentStatistics = 4;

// Statistics of the labels of one scan, NaN for absent labels. They touch the edge where more than
// a tip of them reaches the faces of the field of view.
struct LabelStatistics {
  std::vector<double> shape;
  std::vector<double> content;
  bool touch_edge;
};

// The statistics of `labels` on the grid `fine`, which has the axes and the centre of `grid`, on
// which the normalised scan `image` lies.
LabelStatistics label_statistics(const Image& image, const Grid& grid,
                                 const std::vector<std::uint8_t>& labels, const Grid& fine,
                                 std::size_t classes, const IntensityRule& rule);

// One sentence for the shape and one for the content of labels that lie outside what the network
// found in training scans along `route`; `labels` are all names, the background's first.
std::vector<std::string> doubtful_label_flags(
    const LabelStatistics& found, int route,
    const std::vector<RouteLabelDistribution>& distribution, const std::vector<std::string>& labels,
    std::size_t channels);

// '0.486 (0.24 to 0.485': a value outside its limits with as many digits, at least `digits`, as
// show on which side it lies.
std::string range_text(double value, const std::array<double, 2>& limits, int digits,
                       const char* unit);

}  // namespace rare_trt
