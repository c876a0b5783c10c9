#include "scan/geometry.h"

#include <Eigen/LU>
#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "constants.h"
#include "errors.h"
#include "text.h"

namespace rare_trt {
namespace {

constexpr double kPi = 3.14159265358979323846;

struct Orientation {
  std::array<int, 3> world;     // which world axis each voxel axis is nearest to
  std::array<bool, 3> flipped;  // whether it runs the other way
};

void check_affine(const Affine& affine) {
  if (!affine.allFinite()) {
    throw ScanError(
        "the affine has non-finite numbers; expected a finite 4x4 matrix: correct the header");
  }
  const auto linear = affine.topLeftCorner<3, 3>();
  const Triple size = {linear.col(0).stableNorm(), linear.col(1).stableNorm(),
                       linear.col(2).stableNorm()};
  const auto [smallest, greatest] = std::minmax_element(size.begin(), size.end());
  if (*smallest < kMinVoxelMm || *greatest > kMaxVoxelMm) {
    throw ScanError(text("the affine gives voxels of ", join(size, " x "),
                         " mm; expected three sizes of ", kMinVoxelMm, " to ", kMaxVoxelMm,
                         " mm: correct the header"));
  }
  const double offset = affine.topRightCorner<3, 1>().cwiseAbs().maxCoeff();
  if (offset > kMaxOffsetMm) {
    throw ScanError(text("the affine places the scan ", number(offset, 4),
                         " mm from the world's origin; expected at most ", kMaxOffsetMm,
                         " mm: correct the header"));
  }
  double cosine = 0.0;
  for (const auto& [a, b] : {std::pair{0, 1}, {0, 2}, {1, 2}}) {
    cosine = std::max(cosine, std::abs(linear.col(a).dot(linear.col(b))) / (size[a] * size[b]));
  }
  const double shear_deg = std::asin(std::min(cosine, 1.0)) * 180.0 / kPi;
  if (!(shear_deg <= kMaxShearDeg)) {
    throw ScanError(text("the voxel axes are ", number(shear_deg, 3),
                         " degrees off right angles; expected at most ", kMaxShearDeg,
                         " (no shear): resample the scan to a rectangular grid first"));
  }
}

// The axis of the largest absolute value; the first of equals, which Eigen does not promise.
int largest(const Eigen::Vector3d& values) {
  int found = 0;
  for (int at = 1; at < 3; ++at) {
    if (std::abs(values[at]) > std::abs(values[found])) found = at;
  }
  return found;
}

// The orientation where each voxel axis lies well within 45 degrees of a world axis; else none.
std::optional<Orientation> clear_orientation(const Eigen::Matrix3d& directions) {
  Orientation found{};
  for (int axis = 0; axis < 3; ++axis) {
    const Eigen::Vector3d direction = directions.col(axis);
    const int world = largest(direction);
    if (!(direction[world] * direction[world] > kClearAlignment)) return std::nullopt;
    found.world[axis] = world;
    found.flipped[axis] = direction[world] < 0;
  }
  return found;
}

// As nibabel.orientations.io_orientation does: the rotation nearest to the affine assigns a world
// axis to each voxel axis, from the strongest to the weakest.
Orientation search_orientation(const Eigen::Matrix3d& directions) {
  const Eigen::JacobiSVD<Eigen::Matrix3d> svd(directions,
                                              Eigen::ComputeFullU | Eigen::ComputeFullV);
  Eigen::Matrix3d rotation = svd.matrixU() * svd.matrixV().transpose();
  std::array<int, 3> order = {0, 1, 2};
  const Eigen::RowVector3d strength = rotation.cwiseAbs2().colwise().maxCoeff();
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return strength[a] > strength[b]; });
  Orientation found{};
  for (const int axis : order) {
    const int world = largest(rotation.col(axis));
    found.world[axis] = world;
    found.flipped[axis] = rotation(world, axis) < 0;
    rotation.row(world).setZero();
  }
  return found;
}

Orientation orientation(const Grid& grid) {
  const Triple spacing = grid.spacing_mm();
  Eigen::Matrix3d directions = grid.affine().topLeftCorner<3, 3>();
  for (int axis = 0; axis < 3; ++axis) directions.col(axis) /= spacing[axis];
  const auto clear = clear_orientation(directions);
  return clear ? *clear : search_orientation(directions);
}

Grid canonical_grid(const Grid& scan, const std::array<int, 3>& source,
                    const std::array<bool, 3>& flipped) {
  Shape shape;
  Affine affine = scan.affine();
  Eigen::Vector3d origin = Eigen::Vector3d::Zero();
  for (int axis = 0; axis < 3; ++axis) {
    const int from = source[axis];
    shape[axis] = scan.shape()[from];
    affine.col(axis) = scan.affine().col(from) * (flipped[axis] ? -1.0 : 1.0);
    if (flipped[axis]) origin[from] = static_cast<double>(shape[axis] - 1);
  }
  affine.topRightCorner<3, 1>() = scan.world_mm(origin);
  return {shape, affine};
}

}  // namespace

Grid::Grid(const Shape& shape, const Affine& affine) : shape_(shape), affine_(affine) {
  check_affine(affine_);
}

Triple Grid::spacing_mm() const {
  Triple spacing;
  for (int axis = 0; axis < 3; ++axis) {
    const double x = affine_(0, axis), y = affine_(1, axis), z = affine_(2, axis);
    spacing[axis] = std::sqrt(x * x + y * y + z * z);
  }
  return spacing;
}

Triple Grid::extent_mm() const {
  Triple extent = spacing_mm();
  for (int axis = 0; axis < 3; ++axis) extent[axis] *= static_cast<double>(shape_[axis]);
  return extent;
}

Eigen::Vector3d Grid::world_mm(const Eigen::Vector3d& index) const {
  return affine_.topLeftCorner<3, 3>() * index + affine_.topRightCorner<3, 1>();
}

Eigen::Vector3d Grid::index(const Eigen::Vector3d& world_mm) const {
  return affine_.topLeftCorner<3, 3>().inverse() * (world_mm - affine_.topRightCorner<3, 1>());
}

Grid Grid::box(const Shape& start, const Shape& shape) const {
  Affine affine = affine_;
  affine.topRightCorner<3, 1>() =
      world_mm({static_cast<double>(start[0]), static_cast<double>(start[1]),
                static_cast<double>(start[2])});
  return {shape, affine};
}

Grid Grid::regrid(const Triple& spacing_mm, const Shape& shape) const {
  const Triple own = this->spacing_mm();
  Affine affine = affine_;
  Eigen::Vector3d first;
  for (int axis = 0; axis < 3; ++axis) {
    const double scale = spacing_mm[axis] / own[axis];
    affine.col(axis).head<3>() *= scale;
    first[axis] =
        (static_cast<double>(shape_[axis]) - scale * static_cast<double>(shape[axis] - 1) - 1.0) /
        2.0;
  }
  affine.topRightCorner<3, 1>() = world_mm(first);
  return {shape, affine};
}

Grid Grid::subdivide(const Shape& parts) const {
  Triple spacing = spacing_mm();
  Shape shape = shape_;
  for (int axis = 0; axis < 3; ++axis) {
    spacing[axis] /= static_cast<double>(parts[axis]);
    shape[axis] *= parts[axis];
  }
  return regrid(spacing, shape);
}
Canonical::Canonical(const Grid& scan) : grid(scan) {
  const Orientation found = orientation(scan);
  for (int axis = 0; axis < 3; ++axis) {
    source[found.world[axis]] = axis;
    flipped[found.world[axis]] = found.flipped[axis];
  }
  grid = canonical_grid(scan, source, flipped);
}

}  // namespace rare_trt
