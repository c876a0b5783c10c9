// From grids in millimetres to the six per-axis matrices of a route's graph, and to tiles of it.
//
// A resample between grids along the same axes is a separable linear map: one small matrix per axis
// expresses a change of spacing, anti-aliasing, crop, padding and a tile's place. Everything here
// is pure and computed in double; the matrices are returned as float32.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "plan/routing.h"
#include "scan/geometry.h"

namespace rare_trt {

struct Matrix {
  Matrix() = default;
  Matrix(std::int64_t rows, std::int64_t columns)
      : rows(rows), columns(columns), values(static_cast<std::size_t>(rows * columns)) {}

  float& at(std::int64_t row, std::int64_t column) {
    return values[static_cast<std::size_t>(row * columns + column)];
  }
  float at(std::int64_t row, std::int64_t column) const {
    return values[static_cast<std::size_t>(row * columns + column)];
  }

  std::int64_t rows = 0, columns = 0;
  std::vector<float> values;
};

using Matrices = std::array<Matrix, 3>;

// From `start` up to, not including, `stop`.
struct Range {
  std::int64_t start, stop;
  std::int64_t size() const { return stop - start; }
};

using Ranges = std::array<Range, 3>;

// How a scan goes through a route: working = in . image, output = out . working.
//
// in [I, i] [J, j] [K, k] and out [oi, I] [oj, J] [ok, K]; `core` is the working shape before it
// was padded to the network's multiple.
struct ResamplingPlan {
  Shape core;
  Matrices in, out;

  Shape working_shape() const { return {in[0].rows, in[1].rows, in[2].rows}; }
  Shape output_shape() const { return {out[0].rows, out[1].rows, out[2].rows}; }
};

// One run of the graph: the slab `image` of the scan, its matrices, and the part of the output grid
// that it labels.
struct Tile {
  Ranges image;
  Matrices in, out;
  Ranges output;
};

// The six matrices from `grid` through the route's working grid to `output`.
//
// The working grid lies along the scan's own axes. Along an axis inside the route's native band its
// voxels are the scan's own; along others it has the route's spacing, covers the scan's extent and
// is centred on it. It is then padded at its end to the network's multiple; padding is zero, which
// after normalisation is the foreground's mean. Logits are interpolated from the unpadded part
// alone. The grids' axes must be parallel.
ResamplingPlan plan_resampling(const Grid& grid, const Route& route, const Grid& output);

// Cuts `plan` into runs whose working shape is at most `max_shape`; one run where it fits.
//
// Neighbouring tiles overlap; each labels the output voxels nearest to its own centre.
std::vector<Tile> tiles(const ResamplingPlan& plan, const Shape& max_shape);

// The number of overlapping tiles of at most `tile` voxels that cover an axis of `size`.
std::int64_t tile_count(std::int64_t size, std::int64_t tile);

// The number of parts per axis into which the output grid subdivides a voxel of `grid`: the
// network's labels are at its base spacing.
Shape subvoxel_counts(const Grid& grid, double base_spacing_mm);

// Labels of voxels from the labels [oi, oj, ok] of their sub-voxels, of which there are `parts` per
// axis: the most frequent of `classes` labels, ties to the lower one. `shape` is that of
// `fine`.
std::vector<std::uint8_t> majority_vote(const std::vector<std::uint8_t>& fine, const Shape& shape,
                                        const Shape& parts, int classes);

}  // namespace rare_trt
