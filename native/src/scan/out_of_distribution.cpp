#include "scan/out_of_distribution.h"

#include <Eigen/LU>
#include <algorithm>
#include <cmath>
#include <limits>

#include "constants.h"
#include "scan/numeric.h"
#include "text.h"

namespace rare_trt {
namespace {

// How far the surroundings of a label reach, and equal steps between the clip percentiles in which
// intensities are ranked.
constexpr double kShellMm = 3.0;
constexpr std::size_t kLevels = 256;
constexpr double kHighShare = 0.9;
constexpr int kMaxDigits = 6;

// How far from the mean usual values lie, in deviations.
constexpr double kUsualDeviations = 2.0;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

std::string fixed(double value, int digits) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out.precision(digits);
  out << std::fixed << value;
  std::string found = out.str();
  // Zero has no sign.
  if (found.find_first_not_of("-0.") == std::string::npos && found.front() == '-')
    found.erase(0, 1);
  return found;
}

// The part of a volume of labels [i, j, k], k fastest, that has them all and their surroundings.
struct Part {
  Shape start{};
  Shape shape{};
  std::vector<std::uint8_t> labels;

  std::size_t at(std::int64_t i, std::int64_t j, std::int64_t k) const {
    return static_cast<std::size_t>((i * shape[1] + j) * shape[2] + k);
  }

  // Calls `work` with the place [i, j, k] and the index of every voxel.
  template <class Work>
  void each(const Work& work) const {
    std::size_t index = 0;
    for (std::int64_t i = 0; i < shape[0]; ++i) {
      for (std::int64_t j = 0; j < shape[1]; ++j) {
        for (std::int64_t k = 0; k < shape[2]; ++k) work(Shape{i, j, k}, index++);
      }
    }
  }
};

Part part_of(const std::vector<std::uint8_t>& labels, const Shape& shape, const Shape& steps) {
  Shape first = shape, last = {-1, -1, -1};
  Part whole{{}, shape, {}};
  whole.each([&](const Shape& place, std::size_t index) {
    if (labels[index] == 0) return;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      first[axis] = std::min(first[axis], place[axis]);
      last[axis] = std::max(last[axis], place[axis]);
    }
  });
  Part part;
  if (last[0] < 0) return part;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    part.start[axis] = std::max<std::int64_t>(0, first[axis] - steps[axis]);
    part.shape[axis] = std::min(shape[axis], last[axis] + 1 + steps[axis]) - part.start[axis];
  }
  part.labels.resize(static_cast<std::size_t>(part.shape[0] * part.shape[1] * part.shape[2]));
  part.each([&](const Shape& place, std::size_t index) {
    part.labels[index] = labels[whole.at(part.start[0] + place[0], part.start[1] + place[1],
                                         part.start[2] + place[2])];
  });
  return part;
}

// Along each axis the voxel of `grid` that contains the centre of each voxel of `part`.
std::array<std::vector<std::int64_t>, 3> nearest(const Grid& fine, const Grid& grid,
                                                 const Part& part) {
  std::array<std::vector<std::int64_t>, 3> found;
  const Triple spacing = fine.spacing_mm(), coarse = grid.spacing_mm();
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const auto size = static_cast<double>(fine.shape()[axis]);
    const auto count = grid.shape()[axis];
    const double start = (static_cast<double>(count) * coarse[axis] - size * spacing[axis]) / 2;
    for (std::int64_t at = 0; at < part.shape[axis]; ++at) {
      const double middle = static_cast<double>(part.start[axis] + at) + 0.5;
      const double place = std::floor((start + middle * spacing[axis]) / coarse[axis]);
      found[axis].push_back(
          std::clamp<std::int64_t>(static_cast<std::int64_t>(place), 0, count - 1));
    }
  }
  return found;
}

// Ranks of a channel's voxels under `part`: the share of the foreground of the whole channel that
// is darker, counted in equal levels.
std::vector<double> ranks_of(const float* voxels, const Shape& shape, const Part& part,
                             const std::array<std::vector<std::int64_t>, 3>& index,
                             const IntensityRule& rule) {
  const auto size = static_cast<std::size_t>(shape[0] * shape[1] * shape[2]);
  const auto [low, high] = std::minmax_element(voxels, voxels + size);
  const float zero = *low;
  const float scale = static_cast<float>(kLevels) / (*high - zero);
  const auto level = [&](float value) {
    return static_cast<std::size_t>(
        std::min((value - zero) * scale, static_cast<float>(kLevels - 1)));
  };
  std::array<double, kLevels> counts{};
  for (std::size_t at = 0; at < size; ++at) counts[level(voxels[at])] += 1;
  const auto dark = static_cast<std::size_t>(rule.foreground_share * kLevels);
  std::fill_n(counts.begin(), dark, 0.0);
  double total = 0;
  std::array<double, kLevels> ranks{};
  for (std::size_t at = 0; at < kLevels; ++at) {
    total += counts[at];
    ranks[at] = total - counts[at] / 2;
  }
  std::vector<double> found(part.labels.size());
  part.each([&](const Shape& place, std::size_t at) {
    const auto i = index[0][static_cast<std::size_t>(place[0])];
    const auto j = index[1][static_cast<std::size_t>(place[1])];
    const auto k = index[2][static_cast<std::size_t>(place[2])];
    found[at] = ranks[level(voxels[(i * shape[1] + j) * shape[2] + k])] / total;
  });
  return found;
}

// The centre of a label in world mm, up to a constant, and the statistics of its shape.
Eigen::Vector3d add_shape(const Part& part, std::uint8_t label, const Grid& fine,
                          std::vector<double>& statistics) {
  std::vector<Eigen::Vector3d> places;
  Eigen::Vector3d centre = Eigen::Vector3d::Zero();
  part.each([&](const Shape& place, std::size_t index) {
    if (part.labels[index] != label) return;
    places.emplace_back(place[0], place[1], place[2]);
    centre += places.back();
  });
  if (places.empty()) {
    statistics.insert(statistics.end(), kShapeStatistics, kNone);
    return Eigen::Vector3d::Constant(kNone);
  }
  const auto count = static_cast<double>(places.size());
  centre /= count;
  Eigen::Matrix3d moments = Eigen::Matrix3d::Zero();
  for (const auto& place : places) moments += (place - centre) * (place - centre).transpose();
  // A voxel has an extent of its own.
  moments = moments / count + Eigen::Matrix3d::Identity() / 12;
  const Eigen::Matrix3d axes = fine.affine().topLeftCorner<3, 3>();
  const Eigen::Matrix3d covariance = axes * moments * axes.transpose();
  const auto [x, y, z] = fine.spacing_mm();
  const double volume = std::log(count * (x * y * z));
  statistics.push_back(volume);
  for (int axis = 0; axis < 3; ++axis) statistics.push_back(std::log(covariance(axis, axis)) / 2);
  statistics.push_back(covariance(1, 2) / std::sqrt(covariance(1, 1) * covariance(2, 2)));
  statistics.push_back(std::log(covariance.determinant()) / 2 - volume);
  return axes * centre;
}

// The voxels without a label within so many `steps` of `label` along an axis.
std::vector<bool> shell_of(const Part& part, std::uint8_t label, const Shape& steps) {
  std::vector<bool> shell(part.labels.size());
  part.each([&](const Shape& place, std::size_t index) {
    if (part.labels[index] != label) return;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      Shape other = place;
      const auto first = std::max<std::int64_t>(0, place[axis] - steps[axis]);
      const auto last = std::min(part.shape[axis] - 1, place[axis] + steps[axis]);
      for (other[axis] = first; other[axis] <= last; ++other[axis]) {
        const std::size_t at = part.at(other[0], other[1], other[2]);
        if (part.labels[at] == 0) shell[at] = true;
      }
    }
  });
  return shell;
}

double mean_of(const std::vector<double>& values) {
  return pairwise_sum(values.data(), values.size()) / static_cast<double>(values.size());
}

void add_content(std::vector<double> inside, const std::vector<double>& around,
                 std::vector<double>& statistics) {
  if (inside.empty()) {
    statistics.insert(statistics.end(), kContentStatistics, kNone);
    return;
  }
  const double mean = mean_of(inside);
  std::vector<double> squares(inside.size());
  std::transform(inside.begin(), inside.end(), squares.begin(),
                 [&](double value) { return (value - mean) * (value - mean); });
  statistics.push_back(mean);
  statistics.push_back(std::sqrt(mean_of(squares)));
  statistics.push_back(percentile(inside, kHighShare).counted_from(0.0));
  statistics.push_back(around.empty() ? 0.0 : mean_of(around) - mean);
}

// The share of the surface of all labels that lies on the faces of the volume.
double edge_share(const Part& part, const Grid& fine) {
  if (part.labels.empty()) return 0;
  const auto [x, y, z] = fine.spacing_mm();
  const Triple face = {y * z, x * z, x * y};
  double surface = 0, edge = 0;
  part.each([&](const Shape& place, std::size_t index) {
    if (part.labels[index] == 0) return;
    for (std::size_t axis = 0; axis < 3; ++axis) {
      for (const std::int64_t step : {-1, 1}) {
        Shape other = place;
        other[axis] += step;
        const bool inside = other[axis] >= 0 && other[axis] < part.shape[axis];
        if (inside && part.labels[part.at(other[0], other[1], other[2])] != 0) continue;
        surface += face[axis];
        // Around the labels the part is wider, but at the faces of the volume.
        if (!inside) edge += face[axis];
      }
    }
  });
  return edge / surface;
}

std::vector<std::string> shape_names(const std::vector<std::string>& labels) {
  std::vector<std::string> names;
  for (std::size_t at = 1; at < labels.size(); ++at) {
    for (const char* name :
         {"the logarithm of the volume of ", "the logarithm of the right-left extent of ",
          "the logarithm of the anterior-posterior extent of ",
          "the logarithm of the superior-inferior extent of ", "the tilt of ",
          "the looseness of "}) {
      names.push_back(name + labels[at]);
    }
  }
  for (std::size_t at = 1; at + 1 < labels.size(); ++at) {
    const std::string &one = labels[at], &next = labels[at + 1];
    names.push_back(text("the right-left distance in mm of ", one, " and ", next));
    names.push_back(text("how many mm ", one, " lies in front of ", next));
    names.push_back(text("how many mm ", one, " lies above ", next));
  }
  return names;
}

std::vector<std::string> content_names(const std::vector<std::string>& labels,
                                       std::size_t channels) {
  std::vector<std::string> names;
  for (std::size_t at = 1; at < labels.size(); ++at) {
    for (std::size_t channel = 1; channel <= channels; ++channel) {
      const std::string where = channels > 1 ? text(" in channel ", channel) : "";
      for (const char* name :
           {"the mean intensity rank in ", "the deviation of the intensity ranks in ",
            "percentile 90 of the intensity ranks in ",
            "the rank of the surroundings less that of "}) {
        names.push_back(name + labels[at] + where);
      }
    }
  }
  return names;
}

void add_flag(const char* what, const std::vector<double>& values, const Gaussian& gaussian,
              const std::vector<std::string>& names, std::vector<std::string>& flags) {
  // A label is absent, which is a flag of its own.
  if (!std::all_of(values.begin(), values.end(), [](double one) { return std::isfinite(one); })) {
    return;
  }
  const double distance = gaussian.distance(values);
  if (distance <= gaussian.limit) return;
  std::vector<double> away(values.size());
  for (std::size_t at = 0; at < values.size(); ++at) {
    away[at] = std::abs(values[at] - gaussian.mean[at]) / gaussian.deviation[at];
  }
  const auto most =
      static_cast<std::size_t>(std::max_element(away.begin(), away.end()) - away.begin());
  const double mean = gaussian.mean[most];
  const double reach = kUsualDeviations * gaussian.deviation[most];
  flags.push_back(text("doubtful labels: ", what, " ", fixed(distance, 2),
                       " deviations from training's, ", fixed(gaussian.limit, 2),
                       " at most are accepted (the furthest: ", names[most], " is ",
                       fixed(values[most], 2), ", usually ", fixed(mean - reach, 2), " to ",
                       fixed(mean + reach, 2), " in training)"));
}

}  // namespace

double Gaussian::distance(const std::vector<double>& values) const {
  double total = 0;
  for (const auto& row : whitening) {
    double sum = 0;
    for (std::size_t at = 0; at < row.size(); ++at) sum += row[at] * (values[at] - mean[at]);
    total += sum * sum;
  }
  return std::sqrt(total / static_cast<double>(values.size()));
}

LabelStatistics label_statistics(const Image& image, const Grid& grid,
                                 const std::vector<std::uint8_t>& labels, const Grid& fine,
                                 std::size_t classes, const IntensityRule& rule) {
  Shape steps;
  const Triple spacing = fine.spacing_mm();
  for (std::size_t axis = 0; axis < 3; ++axis) {
    // To the even number, as Python rounds.
    steps[axis] = std::max<std::int64_t>(1, std::llrint(kShellMm / spacing[axis]));
  }
  const Part part = part_of(labels, fine.shape(), steps);
  const auto index = nearest(fine, grid, part);
  const auto size = static_cast<std::int64_t>(image.values.size()) / image.channels;
  std::vector<std::vector<double>> ranks;
  for (std::int64_t channel = 0; channel < image.channels; ++channel) {
    ranks.push_back(ranks_of(image.values.data() + channel * size, image.shape, part, index, rule));
  }
  LabelStatistics found;
  std::vector<Eigen::Vector3d> centres;
  for (std::size_t label = 1; label < classes; ++label) {
    const auto value = static_cast<std::uint8_t>(label);
    centres.push_back(add_shape(part, value, fine, found.shape));
    const auto shell = shell_of(part, value, steps);
    for (const auto& rank : ranks) {
      std::vector<double> inside, around;
      for (std::size_t at = 0; at < rank.size(); ++at) {
        if (part.labels[at] == value) inside.push_back(rank[at]);
        if (shell[at]) around.push_back(rank[at]);
      }
      add_content(std::move(inside), around, found.content);
    }
  }
  for (std::size_t at = 0; at + 1 < centres.size(); ++at) {
    const Eigen::Vector3d between = centres[at] - centres[at + 1];
    found.shape.insert(found.shape.end(), {std::abs(between[0]), between[1], between[2]});
  }
  found.touch_edge = edge_share(part, fine) >= kEdgeShare;
  return found;
}

std::vector<std::string> doubtful_label_flags(
    const LabelStatistics& found, int route,
    const std::vector<RouteLabelDistribution>& distribution, const std::vector<std::string>& labels,
    std::size_t channels) {
  const auto known = std::find_if(distribution.begin(), distribution.end(),
                                  [&](const auto& entry) { return entry.route == route; });
  std::vector<std::string> flags;
  if (known == distribution.end()) return flags;
  add_flag("their shape and position lie", found.shape, known->shape, shape_names(labels), flags);
  add_flag("the intensities under and around them lie", found.content, known->content,
           content_names(labels, channels), flags);
  return flags;
}

std::string range_text(double value, const std::array<double, 2>& limits, int digits,
                       const char* unit) {
  const double beyond = value > limits[1] ? limits[1] : limits[0];
  while (digits < kMaxDigits && fixed(value, digits) == fixed(beyond, digits)) ++digits;
  return text(fixed(value, digits), unit, " (", fixed(limits[0], digits), " to ",
              fixed(limits[1], digits));
}

}  // namespace rare_trt
