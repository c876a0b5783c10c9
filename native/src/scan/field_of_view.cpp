#include "scan/field_of_view.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "constants.h"
#include "scan/numeric.h"
#include "text.h"

namespace rare_trt {
namespace {

// Whether the slice `at` of `axis` holds more than one value in any of its channels.
template <class Stored>
bool varies(const Voxels& voxels, int axis, std::int64_t at) {
  const int first = axis == 0 ? 1 : 0, second = axis == 2 ? 1 : 2;
  const std::byte* slice = voxels.data + at * voxels.strides[axis];
  const auto value = [](const std::byte* from) {
    Stored stored;
    std::memcpy(&stored, from, sizeof stored);
    return stored;
  };
  for (std::int64_t channel = 0; channel < voxels.channels; ++channel) {
    const std::byte* start = slice + channel * voxels.channel_stride;
    const Stored corner = value(start);
    for (std::int64_t a = 0; a < voxels.shape[first]; ++a) {
      for (std::int64_t b = 0; b < voxels.shape[second]; ++b) {
        if (value(start + a * voxels.strides[first] + b * voxels.strides[second]) != corner) {
          return true;
        }
      }
    }
  }
  return false;
}

// Removes the outer slices of one value from `box` along `axis`; false where no slice would remain.
template <class Stored>
bool remove_padding(const Voxels& scan, int axis, Box& box) {
  const Voxels voxels = scan.part(box);
  std::int64_t start = 0, stop = voxels.shape[axis];
  while (start < stop && !varies<Stored>(voxels, axis, start)) ++start;
  if (start == stop) return false;
  while (!varies<Stored>(voxels, axis, stop - 1)) --stop;
  box.start[axis] = start;
  box.shape[axis] = stop - start;
  return true;
}

std::string mm(const Triple& values) { return join(values, " x "); }

bool covers(const Grid& grid, const Triple& least) {
  const Triple extent = grid.extent_mm();
  bool found = true;
  for (int axis = 0; axis < 3; ++axis) found &= extent[axis] >= least[axis] - kExtentToleranceMm;
  return found;
}

// `whole` is the scan's grid; `is_box`: `grid` was cut out of it around a point.
void check_field_of_view(const Grid& grid, const Grid& whole, const FieldOfView& accepted,
                         bool is_box) {
  const Triple extent = grid.extent_mm();
  bool not_too_much = true;
  for (int axis = 0; axis < 3; ++axis) {
    not_too_much &= extent[axis] <= accepted.max[axis] + kExtentToleranceMm;
  }
  if (covers(grid, accepted.min) && not_too_much) return;
  const bool large_enough = covers(is_box ? whole : grid, accepted.min);
  std::string remedy = "take a scan, or a crop of one, that covers more";
  if (large_enough && is_box) {
    remedy = "the scan's edge cuts the box: choose a point further inside";
  } else if (large_enough) {
    remedy = "pass a point to segment a box of the trained size around it";
  }
  throw ScanError(
      text("the field of view is ", mm(extent),
           " mm (right-left, anterior-posterior, superior-inferior); this package takes ",
           mm(accepted.min), " to ", mm(accepted.max), " mm: ", remedy));
}

[[noreturn]] void refuse_point(const Grid& grid, const Triple& point_mm) {
  Eigen::Vector3d low, high;
  for (int corner = 0; corner < 8; ++corner) {
    Eigen::Vector3d index;
    for (int axis = 0; axis < 3; ++axis) {
      const bool far = (corner >> axis & 1) != 0;
      index[axis] = far ? static_cast<double>(grid.shape()[axis]) - 0.5 : -0.5;
    }
    const Eigen::Vector3d world = grid.world_mm(index);
    low = corner == 0 ? world : low.cwiseMin(world).eval();
    high = corner == 0 ? world : high.cwiseMax(world).eval();
  }
  throw ScanError(text("the point ", join(point_mm, ", "),
                       " lies outside the scan, which reaches from ", join(low, ", "), " to ",
                       join(high, ", "), " mm (right, anterior, superior): choose a point inside"));
}

// Four times the squared distance of `voxel` to the centre of `box`: whole numbers until spacing
// comes in, so that mirrored voxels tie.
double squared_mm(const Triple& spacing_mm, const Box& box, const Shape& voxel) {
  double sum = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const std::int64_t twice = 2 * voxel[axis] - (2 * box.start[axis] + box.shape[axis] - 1);
    const double away = static_cast<double>(twice) * spacing_mm[axis];
    sum += away * away;
  }
  return sum;
}

// The place of a voxel of the whole grid among those of `box`, k fastest.
std::size_t offset_in(const Box& box, const Shape& voxel) {
  const auto [i, j, k] = box.start;
  return static_cast<std::size_t>(((voxel[0] - i) * box.shape[1] + (voxel[1] - j)) * box.shape[2] +
                                  (voxel[2] - k));
}

}  // namespace

Box without_padding(const Voxels& voxels) {
  const Box everything{{0, 0, 0}, voxels.shape};
  Box box = everything;
  for (int axis = 0; axis < 3; ++axis) {
    const bool any = with_type(voxels.dtype, [&](auto stored) {
      return remove_padding<decltype(stored)>(voxels, axis, box);
    });
    if (!any) return everything;
  }
  return box;
}

Box box_at(const Grid& grid, const Triple& point_mm, const Triple& size_mm) {
  const Eigen::Vector3d point(point_mm[0], point_mm[1], point_mm[2]);
  if (!point.allFinite()) {
    throw ScanError(text("the point is ", join(point_mm, ", "),
                         "; expected three finite numbers in mm: pass them"));
  }
  Eigen::Vector3d centre = grid.index(point);
  for (int axis = 0; axis < 3; ++axis) centre[axis] = round_decimals(centre[axis], kCentreDecimals);
  const Triple spacing = grid.spacing_mm();
  Box box;
  for (int axis = 0; axis < 3; ++axis) {
    const auto size = static_cast<double>(grid.shape()[axis]);
    // Written so that NaN is outside, too.
    if (!(centre[axis] >= -0.5 && centre[axis] <= size - 0.5)) refuse_point(grid, point_mm);
    const double wanted = std::max(1.0, std::nearbyint(size_mm[axis] / spacing[axis]));
    const double start = std::floor(centre[axis] - (wanted - 1) / 2 + 0.5);
    const double stop = std::min(start + wanted, size);
    box.start[axis] = static_cast<std::int64_t>(std::max(start, 0.0));
    box.shape[axis] = static_cast<std::int64_t>(stop) - box.start[axis];
  }
  return box;
}

Region select_region(const Voxels& scan, const Grid& grid, const FieldOfView& accepted,
                     const std::optional<Triple>& at_mm) {
  const Canonical canonical(grid);
  const Voxels voxels = canonical.from_scan(scan);
  const Box box =
      at_mm ? box_at(canonical.grid, *at_mm, accepted.typical) : without_padding(voxels);
  const Grid part = canonical.grid.box(box.start, box.shape);
  check_field_of_view(part, canonical.grid, accepted, at_mm.has_value());
  return {canonical, box, part, voxels.part(box)};
}

Ownership divide_overlaps(const Triple& spacing_mm, const std::vector<Box>& boxes,
                          const std::vector<std::vector<std::uint8_t>>& labels) {
  Ownership found;
  for (const auto& part : labels) found.owned.emplace_back(part.size(), std::uint8_t{1});
  for (std::size_t a = 0; a < boxes.size(); ++a) {
    for (std::size_t b = a + 1; b < boxes.size(); ++b) {
      const Box& one = boxes[a];
      const Box& two = boxes[b];
      Shape low, high;
      for (int axis = 0; axis < 3; ++axis) {
        low[axis] = std::max(one.start[axis], two.start[axis]);
        high[axis] = std::min(one.start[axis] + one.shape[axis], two.start[axis] + two.shape[axis]);
      }
      const bool one_is_first = one.start <= two.start;
      std::int64_t disputed = 0;
      for (std::int64_t i = low[0]; i < high[0]; ++i) {
        for (std::int64_t j = low[1]; j < high[1]; ++j) {
          for (std::int64_t k = low[2]; k < high[2]; ++k) {
            const Shape voxel = {i, j, k};
            const double to_one = squared_mm(spacing_mm, one, voxel);
            const double to_two = squared_mm(spacing_mm, two, voxel);
            const bool is_one = one_is_first ? to_one <= to_two : to_one < to_two;
            const auto in_one = offset_in(one, voxel), in_two = offset_in(two, voxel);
            (is_one ? found.owned[b][in_two] : found.owned[a][in_one]) = 0;
            disputed += labels[a][in_one] != labels[b][in_two];
          }
        }
      }
      if (disputed > 0) found.disputes.push_back({a, b, disputed});
    }
  }
  return found;
}

}  // namespace rare_trt
