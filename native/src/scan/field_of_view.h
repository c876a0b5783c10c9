// The part of a scan that is segmented: all of it but padding, or a box of the trained size around
// a point.
#pragma once

#include <optional>

#include "scan/voxels.h"

namespace rare_trt {

// Accepted fields of view per canonical axis in mm; `typical` is what a box around a point has.
struct FieldOfView {
  Triple min, typical, max;
};

// What of a scan is segmented, in canonical order: the voxels of `box` on `grid`.
struct Region {
  Canonical canonical;
  Box box;
  Grid grid;
  Voxels voxels;
};

// A scan without its padding, or the box of the typical size around the world point `at_mm`. Throws
// ScanError where its field of view is not one that `accepted` allows.
Region region_of(const Voxels& scan, const Grid& grid, const FieldOfView& accepted,
                 const std::optional<Triple>& at_mm);

// The box that is left without outer slices of one value. Software pads scans with constants; they
// say nothing, but the network would average over them. A constant scan is left as it is.
Box without_padding(const Voxels& voxels);

// The box of `size_mm` around the world point `point_mm`, cut off at the borders of `grid`. Throws
// ScanError where the point lies outside the scan.
Box box_at(const Grid& grid, const Triple& point_mm, const Triple& size_mm);

}  // namespace rare_trt
