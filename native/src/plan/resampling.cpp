#include "plan/resampling.h"

#include <Eigen/LU>
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "constants.h"
#include "errors.h"
#include "scan/numeric.h"
#include "text.h"

namespace rare_trt {
namespace {

constexpr double kMaxAxis = 1 << 20;

// `voxels` along an axis as an integer of at least 1. It comes from dividing lengths that were not
// validated, so it is bounded before memory is allocated.
std::int64_t voxel_count(double voxels) {
  if (!(voxels <= kMaxAxis)) {
    throw ScanError(text("the scan needs ", number(voxels),
                         " voxels along an axis; expected at most ", number(kMaxAxis, 8),
                         ": check its spacing, and the package's"));
  }
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(voxels));
}

std::int64_t padding(std::int64_t size, std::int64_t multiple) {
  return (multiple - size % multiple) % multiple;
}

Shape covering_shape(const Grid& grid, const Triple& spacing_mm) {
  const Triple extent = grid.extent_mm();
  Shape shape;
  for (int axis = 0; axis < 3; ++axis) {
    shape[axis] = voxel_count(std::ceil(extent[axis] / spacing_mm[axis] - kPositionTolerance));
  }
  return shape;
}

// Samples at the positions first, first + step, ... in voxels of a source axis.
struct Sampling {
  double first, step;
};

// One row: the weights of a source axis' voxels at `position`.
std::vector<double> weights(std::int64_t size, double position, double radius) {
  // Exact where the grids share voxel centres, so that a native axis is an exact identity.
  const double whole = std::nearbyint(position);
  if (std::abs(position - whole) < kPositionTolerance) position = whole;
  std::vector<double> row(static_cast<std::size_t>(size));
  const bool outside = position < -0.5 - kPositionTolerance ||
                       position > static_cast<double>(size) - 0.5 + kPositionTolerance;
  if (outside) return row;
  for (std::size_t at = 0; at < row.size(); ++at) {
    row[at] = std::max(0.0, 1.0 - std::abs(position - static_cast<double>(at)) / radius);
  }
  const double total = pairwise_sum(row.data(), row.size());
  if (total > 0.0) {
    for (double& weight : row) weight /= total;
  }
  return row;
}

// The voxel centres of `target` along each axis of `source`.
std::array<Sampling, 3> sampling(const Grid& source, const Grid& target) {
  const Eigen::Matrix3d from = source.affine().topLeftCorner<3, 3>();
  const Eigen::Matrix3d to = target.affine().topLeftCorner<3, 3>();
  const Eigen::Matrix3d step = from.partialPivLu().solve(to);
  Eigen::Matrix3d stray = step;
  stray.diagonal().setZero();
  const auto& shape = target.shape();
  const auto longest = static_cast<double>(*std::max_element(shape.begin(), shape.end()));
  if (stray.cwiseAbs().maxCoeff() * longest > kMaxStrayVoxels) {
    throw std::logic_error("the grids' axes are not parallel");
  }
  const Eigen::Vector3d first = source.index(target.affine().topRightCorner<3, 1>());
  std::array<Sampling, 3> found;
  for (int axis = 0; axis < 3; ++axis) {
    found[axis] = {round_decimals(first[axis], kPositionDecimals),
                   round_decimals(step(axis, axis), kStepDecimals)};
  }
  return found;
}

// Weights that resample along each axis, in matrices of `rows` x `columns`, zero where these are
// larger than the grids.
//
// Linear interpolation between voxel centres; where the target is coarser, the triangle is widened
// to the target's spacing, which averages away detail that the target cannot represent. Rows sum to
// one, also within the outer half voxel, so a constant stays constant up to the edge. Target
// voxels centred outside the source's extent are zero.
Matrices axis_matrices(const Grid& source, const Grid& target, const Shape& rows,
                       const Shape& columns) {
  const bool same = source.shape() == target.shape() && source.affine() == target.affine();
  const auto samples = sampling(source, target);
  Matrices found;
  for (int axis = 0; axis < 3; ++axis) {
    found[axis] = Matrix(rows[axis], columns[axis]);
    const double radius = std::max(1.0, std::abs(samples[axis].step));
    for (std::int64_t row = 0; row < target.shape()[axis]; ++row) {
      if (same) {
        found[axis].at(row, row) = 1.0F;
        continue;
      }
      const double position = samples[axis].first + samples[axis].step * static_cast<double>(row);
      const auto found_weights = weights(source.shape()[axis], position, radius);
      std::transform(found_weights.begin(), found_weights.end(), &found[axis].at(row, 0),
                     [](double weight) { return static_cast<float>(weight); });
    }
  }
  return found;
}

// One axis of a tile.
struct AxisTile {
  Range image;
  Matrix in, out;
  Range output;
};

Matrix part(const Matrix& matrix, const Range& rows, const Range& columns) {
  Matrix found(rows.size(), columns.size());
  for (std::int64_t row = 0; row < rows.size(); ++row) {
    for (std::int64_t column = 0; column < columns.size(); ++column) {
      found.at(row, column) = matrix.at(rows.start + row, columns.start + column);
    }
  }
  return found;
}

// Evenly from 0 to `last`, in whole voxels.
std::vector<std::int64_t> tile_starts(std::int64_t last, std::int64_t count) {
  std::vector<std::int64_t> starts(static_cast<std::size_t>(count), 0);
  for (std::int64_t at = 1; at < count; ++at) {
    const double step = static_cast<double>(last) / static_cast<double>(count - 1);
    const double start =
        at == count - 1 ? static_cast<double>(last) : static_cast<double>(at) * step;
    starts[static_cast<std::size_t>(at)] = static_cast<std::int64_t>(std::nearbyint(start));
  }
  return starts;
}

// The position of each output voxel on the working axis. Voxels outside the scan have none and take
// that of their neighbours.
std::vector<double> output_positions(const Matrix& out) {
  std::vector<std::int64_t> placed;
  std::vector<double> known;
  std::vector<double> terms(static_cast<std::size_t>(out.columns));
  for (std::int64_t row = 0; row < out.rows; ++row) {
    bool any = false;
    for (std::int64_t column = 0; column < out.columns; ++column) {
      any |= out.at(row, column) != 0.0F;
      terms[static_cast<std::size_t>(column)] =
          static_cast<double>(out.at(row, column)) * static_cast<double>(column);
    }
    if (!any) continue;
    placed.push_back(row);
    known.push_back(pairwise_sum(terms.data(), terms.size()));
  }
  if (placed.empty()) throw std::logic_error("no output voxel lies inside the scan");
  std::vector<double> found(static_cast<std::size_t>(out.rows));
  std::size_t next = 0;
  for (std::int64_t row = 0; row < out.rows; ++row) {
    while (next + 1 < placed.size() && placed[next + 1] <= row) ++next;
    double place = known[next];
    if (row > placed[next] && next + 1 < placed.size()) {
      const double slope =
          (known[next + 1] - known[next]) / static_cast<double>(placed[next + 1] - placed[next]);
      place = slope * static_cast<double>(row - placed[next]) + known[next];
    }
    found[static_cast<std::size_t>(row)] = place;
  }
  return found;
}

// From the first to the last column that is not zero in any of `rows`.
Range nonzero_columns(const Matrix& matrix, const Range& rows) {
  Range found{matrix.columns, 0};
  for (std::int64_t row = rows.start; row < rows.stop; ++row) {
    for (std::int64_t column = 0; column < matrix.columns; ++column) {
      if (matrix.at(row, column) == 0.0F) continue;
      found.start = std::min(found.start, column);
      found.stop = std::max(found.stop, column + 1);
    }
  }
  return found;
}

std::vector<AxisTile> axis_tiles(const ResamplingPlan& plan, int axis, std::int64_t max_size) {
  const Matrix &in = plan.in[axis], &out = plan.out[axis];
  if (in.rows <= max_size) return {{{0, in.columns}, in, out, {0, out.rows}}};
  // Tiles contain voxels of the scan only, no padding, and the output voxels they label are half an
  // overlap away from their cut faces.
  const std::int64_t spare = std::max<std::int64_t>(0, plan.core[axis] - max_size);
  const std::int64_t count = tile_count(plan.core[axis], max_size);
  const auto starts = tile_starts(spare, count);
  const auto position = output_positions(out);
  std::vector<Range> rows(starts.size(), Range{out.rows, 0});
  for (std::int64_t row = 0; row < out.rows; ++row) {
    std::size_t nearest = 0;
    const auto away = [&](std::size_t tile) {
      const double centre =
          static_cast<double>(starts[tile]) + static_cast<double>(max_size - 1) / 2;
      return std::abs(position[static_cast<std::size_t>(row)] - centre);
    };
    for (std::size_t tile = 1; tile < starts.size(); ++tile) {
      if (away(tile) < away(nearest)) nearest = tile;
    }
    rows[nearest] = {std::min(rows[nearest].start, row), row + 1};
  }
  std::vector<AxisTile> found;
  for (std::size_t tile = 0; tile < starts.size(); ++tile) {
    if (rows[tile].size() <= 0) continue;
    const Range window = {starts[tile], std::min(starts[tile] + max_size, in.rows)};
    const Range image = nonzero_columns(in, window);
    found.push_back({image, part(in, window, image), part(out, rows[tile], window), rows[tile]});
  }
  return found;
}

}  // namespace

ResamplingPlan plan_resampling(const Grid& grid, const Route& route, const Grid& output) {
  const Triple spacing = route.working_spacing_mm(grid.spacing_mm());
  const Shape core = covering_shape(grid, spacing);
  const Grid working = grid.regrid(spacing, core);
  Shape padded = core;
  for (auto& size : padded) {
    size =
        voxel_count(static_cast<double>(size) + static_cast<double>(padding(size, route.multiple)));
  }
  for (const auto size : output.shape()) voxel_count(static_cast<double>(size));
  return {core, axis_matrices(grid, working, padded, grid.shape()),
          axis_matrices(working, output, output.shape(), padded)};
}

std::int64_t tile_count(std::int64_t size, std::int64_t tile) {
  const double overlap = std::min(static_cast<double>(tile) / 2, static_cast<double>(kMaxOverlap));
  const double further = static_cast<double>(size - tile) / (static_cast<double>(tile) - overlap);
  return 1 + std::max<std::int64_t>(0, static_cast<std::int64_t>(std::ceil(further)));
}

std::vector<Tile> tiles(const ResamplingPlan& plan, const Shape& max_shape) {
  std::array<std::vector<AxisTile>, 3> axes;
  for (int axis = 0; axis < 3; ++axis) axes[axis] = axis_tiles(plan, axis, max_shape[axis]);
  std::vector<Tile> found;
  for (const AxisTile& i : axes[0]) {
    for (const AxisTile& j : axes[1]) {
      for (const AxisTile& k : axes[2]) {
        found.push_back({{i.image, j.image, k.image},
                         {i.in, j.in, k.in},
                         {i.out, j.out, k.out},
                         {i.output, j.output, k.output}});
      }
    }
  }
  return found;
}

Shape subvoxel_counts(const Grid& grid, double base_spacing_mm) {
  const Triple spacing = grid.spacing_mm();
  Shape parts;
  for (int axis = 0; axis < 3; ++axis) {
    parts[axis] = voxel_count(std::ceil(spacing[axis] / base_spacing_mm - kSubvoxelTolerance));
  }
  return parts;
}

std::vector<std::uint8_t> majority_vote(const std::vector<std::uint8_t>& fine, const Shape& shape,
                                        const Shape& parts, int classes) {
  if (parts == Shape{1, 1, 1}) return fine;
  const Shape coarse = {shape[0] / parts[0], shape[1] / parts[1], shape[2] / parts[2]};
  std::vector<std::uint8_t> labels;
  labels.reserve(static_cast<std::size_t>(coarse[0] * coarse[1] * coarse[2]));
  std::vector<std::int64_t> votes(static_cast<std::size_t>(classes));
  for (std::int64_t i = 0; i < coarse[0]; ++i) {
    for (std::int64_t j = 0; j < coarse[1]; ++j) {
      for (std::int64_t k = 0; k < coarse[2]; ++k) {
        std::fill(votes.begin(), votes.end(), 0);
        for (std::int64_t a = i * parts[0]; a < (i + 1) * parts[0]; ++a) {
          for (std::int64_t b = j * parts[1]; b < (j + 1) * parts[1]; ++b) {
            const std::uint8_t* row = fine.data() + (a * shape[1] + b) * shape[2] + k * parts[2];
            for (std::int64_t c = 0; c < parts[2]; ++c) ++votes[row[c]];
          }
        }
        // max_element returns the first of equals, which is the lowest label.
        const auto most = std::max_element(votes.begin(), votes.end());
        labels.push_back(static_cast<std::uint8_t>(most - votes.begin()));
      }
    }
  }
  return labels;
}

}  // namespace rare_trt
