// Where voxels lie in the world: grids, their axes, and the nearest canonical order of those axes.
//
// World coordinates are millimetres in NIfTI's RAS+ convention; voxel indices point at voxel
// centres.
#pragma once

#include <Eigen/Core>
#include <array>
#include <cstdint>

namespace rare_trt {

using Shape = std::array<std::int64_t, 3>;
using Strides = std::array<std::int64_t, 3>;
using Triple = std::array<double, 3>;
using Affine = Eigen::Matrix4d;

// A voxel grid: shape (i, j, k) and the affine from voxel index to world mm.
class Grid {
 public:
  // Throws ScanError where `affine` cannot place voxels in the world.
  Grid(const Shape& shape, const Affine& affine);

  const Shape& shape() const { return shape_; }
  const Affine& affine() const { return affine_; }

  // Voxel size along i, j, k, taken from the affine's columns.
  Triple spacing_mm() const;

  // Field of view along i, j, k, from the outer face of the first voxel to the last's.
  Triple extent_mm() const;

  // World position of a (fractional) voxel index, and back.
  Eigen::Vector3d world_mm(const Eigen::Vector3d& index) const;
  Eigen::Vector3d index(const Eigen::Vector3d& world_mm) const;

  // The part of this grid that begins at voxel `start` and has `shape` voxels.
  Grid box(const Shape& start, const Shape& shape) const;

  // A grid along the same axes and about the same centre with another spacing and shape.
  Grid regrid(const Triple& spacing_mm, const Shape& shape) const;

  // The grid that cuts each voxel into `parts` equal ones per axis.
  Grid subdivide(const Shape& parts) const;

 private:
  Shape shape_;
  Affine affine_;
};

// The scan's axes permuted and flipped to the nearest right, anterior, superior order.
//
// No voxel is resampled, so the way back is exact; an oblique scan keeps its oblique axes.
struct Canonical {
  explicit Canonical(const Grid& scan);

  // Which axis of the scan becomes each canonical axis, and whether it is flipped.
  std::array<int, 3> source;
  std::array<bool, 3> flipped;
  Grid grid;

  // A view of an array in the scan's own order (anything with data, shape and strides) -> a view of
  // the same memory in canonical order.
  template <class View>
  View from_scan(const View& scan) const {
    View view = scan;
    for (int axis = 0; axis < 3; ++axis) {
      const std::int64_t stride = scan.strides[source[axis]];
      view.shape[axis] = scan.shape[source[axis]];
      view.strides[axis] = flipped[axis] ? -stride : stride;
      if (flipped[axis]) view.data += (view.shape[axis] - 1) * stride;
    }
    return view;
  }
};

}  // namespace rare_trt
