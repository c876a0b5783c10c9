// The part of a scan that is segmented: the scan without padding, or a box of the trained size
// around a point.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "scan/voxels.h"

namespace rare_trt {

// Accepted fields of view per canonical axis in mm; `typical` is the size of a box around a point.
struct FieldOfView {
  Triple min, typical, max;
};

// The segmented part of a scan in canonical order: `voxels` on `grid`, which is `box` of the
// canonical scan.
struct Region {
  Canonical canonical;
  Box box;
  Grid grid;
  Voxels voxels;
};

// A scan without its padding, or the box of the typical size around the world point `at_mm`. Throws
// ScanError where `accepted` does not allow its field of view.
Region select_region(const Voxels& scan, const Grid& grid, const FieldOfView& accepted,
                     const std::optional<Triple>& at_mm);

// The box inside the outer slices of one value. Software pads scans with constants, which would
// enter the network's averages. A constant scan is left as it is.
Box without_padding(const Voxels& voxels);

// The box of `size_mm` around the world point `point_mm`, cut off at the faces of `grid`. Throws
// ScanError where the point lies outside the scan.
Box box_at(const Grid& grid, const Triple& point_mm, const Triple& size_mm);

// Voxels that two boxes label differently.
struct Dispute {
  std::size_t one;
  std::size_t two;
  std::int64_t voxels;
};

// Which voxels of overlapping boxes belong to which: `owned` has a byte per voxel of each box, not
// 0 where its labels are taken.
struct Ownership {
  std::vector<std::vector<std::uint8_t>> owned;
  std::vector<Dispute> disputes;
};

// Divides `boxes` of a grid of `spacing_mm`, with the `labels` of each. A voxel belongs to the box
// whose centre is nearest, and of those that are equally near to the one that begins first along i,
// then j, then k.
Ownership divide_overlaps(const Triple& spacing_mm, const std::vector<Box>& boxes,
                          const std::vector<std::vector<std::uint8_t>>& labels);

}  // namespace rare_trt
