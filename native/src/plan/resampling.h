// From grids in millimetres to the six per-axis matrices of a route's graph, and to tiles of it.
//
// A resample between grids along the same axes is a separable linear map: one small matrix per axis
// expresses a change of spacing, anti-aliasing, crop, padding and a tile's place. Everything here
// is pure and computed in double; the matrices are handed over as float32.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "plan/routing.h"
#include "scan/geometry.h"

namespace rare_trt {

// Image and output axes are padded to a multiple of this, so that the scans of a clinic share a
// handful of compiled shapes. The working grid is not: instance norm feels padding.
constexpr std::int64_t kBucket = 16;

// Neighbouring tiles share half of their voxels, up to this many: half of what the shipped network
// was shown in training. More would be paid for in time by every large volume.
constexpr std::int64_t kMaxOverlap = 64;

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
struct Plan {
  Shape core;
  Matrices in, out;

  Shape working_shape() const { return {in[0].rows, in[1].rows, in[2].rows}; }
  Shape output_shape() const { return {out[0].rows, out[1].rows, out[2].rows}; }
};

// One run of the graph: the slab `image` of the scan, its matrices, and where labels go.
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
Plan plan(const Grid& grid, const Route& route, const Grid& output);

// Cuts `plan` into runs whose working shape is at most `max_shape`; one run where it fits.
//
// Neighbouring tiles overlap; each answers the output voxels nearest to its own centre.
std::vector<Tile> tiles(const Plan& plan, const Shape& max_shape);

// Into how many overlapping tiles of at most `tile` voxels an axis of `size` is cut.
std::int64_t tile_count(std::int64_t size, std::int64_t tile);

// Into how many parts per axis the answer subdivides a voxel of `grid`: the network's answer lives
// at its base spacing.
Shape answer_parts(const Grid& grid, double base_spacing_mm);

// Labels of voxels from the labels [oi, oj, ok] of their `parts` sub-voxels: the class with the
// largest share, ties to the lower label. `shape` is that of `answer`.
std::vector<std::uint8_t> largest_share(const std::vector<std::uint8_t>& answer, const Shape& shape,
                                        const Shape& parts, int classes);

}  // namespace rare_trt
