#include "plan/memory.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <tuple>
#include <vector>

#include "errors.h"
#include "text.h"

namespace rare_trt {
namespace {

constexpr double kMiB = 1 << 20;

// Tiles move answers by a few voxels, so the limit is the same wherever there is memory for it.
constexpr double kUsualLimit = 8192 * kMiB;

// Libraries, weights, and what a run takes whatever its size; measured for the Python runtime,
// whose answers hang on it.
constexpr double kFixedBytes = 320 * kMiB;

// Per voxel of a channel that is being normalised: its foreground in float32 and in float64.
constexpr double kPreparedBytes = 20;

// As rare_trt/memory.py: per class and voxel of an answer beyond those of the run.
constexpr double kAnswerBytes = 10;

double volume(const Shape& shape) {
  return static_cast<double>(shape[0]) * static_cast<double>(shape[1]) *
         static_cast<double>(shape[2]);
}

// Sizes of a tile along `axis`, ascending: for each number of tiles the least that will do.
std::set<std::int64_t> axis_choices(const Plan& plan, const Route& route, std::size_t axis) {
  const std::int64_t whole = plan.working_shape()[axis], trained = route.max_shape[axis];
  std::set<std::int64_t> counts, sizes = {std::min(whole, trained), whole};
  for (std::int64_t size = trained; size < whole; size += route.multiple) {
    if (counts.insert(tile_count(plan.core[axis], size)).second) sizes.insert(size);
  }
  return sizes;
}

// Working voxels that are run in tiles of `shape`, overlap included.
double work(const Plan& plan, const Shape& shape) {
  double found = 1;
  for (std::size_t axis = 0; axis < 3; ++axis) {
    const bool whole = shape[axis] >= plan.working_shape()[axis];
    const std::int64_t count = whole ? 1 : tile_count(plan.core[axis], shape[axis]);
    found *= static_cast<double>(shape[axis] * count);
  }
  return found;
}

std::string mib(double bytes) {
  return text(static_cast<std::int64_t>(std::ceil(bytes / kMiB)), " MiB");
}

}  // namespace

double usual_memory_limit() {
  const auto pages = static_cast<double>(sysconf(_SC_PHYS_PAGES));
  return std::min(kUsualLimit, std::floor(pages * static_cast<double>(sysconf(_SC_PAGE_SIZE)) / 2));
}

std::optional<double> bytes_per_voxel(const Model& model, int route,
                                      const std::string& arithmetic) {
  if (!model.filters) return std::nullopt;
  // As rare_trt/memory.py: float parts that are not bf16 are float32, also those beside INT8.
  const bool wide = arithmetic.find("bf16") == std::string::npos;
  return static_cast<double>(*model.filters << route) * (wide ? 22.0 : 13.0);
}

Shape tile_shape(const Plan& plan, const Route& route, double per_voxel, const Shape& scan,
                 const Shape& shown, std::int64_t channels, std::int64_t stored,
                 std::size_t classes, double limit) {
  // Stored in two orders, and what is shown normalised; labels of the answer and of the scan.
  const Shape whole = plan.working_shape();
  const double answer = volume(plan.output_shape());
  per_voxel +=
      std::max(0.0, answer / volume(whole) - 1.0) * kAnswerBytes * static_cast<double>(classes);
  const double held = kFixedBytes + volume(scan) * static_cast<double>(channels * 2 * stored) +
                      volume(shown) * static_cast<double>(channels * 4) + answer +
                      std::max(answer, volume(scan));
  const double preparing = held + volume(shown) * kPreparedBytes;
  if (std::max(preparing, held + volume(whole) * per_voxel) <= limit) return whole;
  std::array<std::set<std::int64_t>, 3> axes;
  for (std::size_t axis = 0; axis < 3; ++axis) axes[axis] = axis_choices(plan, route, axis);
  const Shape least = {*axes[0].begin(), *axes[1].begin(), *axes[2].begin()};
  const double needed = std::ceil(std::max(preparing, held + volume(least) * per_voxel));
  if (needed > limit) {
    throw ScanError(text("segmenting this scan takes ", mib(needed),
                         " in the smallest tiles; the memory limit is ", mib(limit),
                         ": segment a part of the scan with a point"));
  }
  std::optional<std::tuple<double, Shape>> best;
  for (const std::int64_t i : axes[0]) {
    for (const std::int64_t j : axes[1]) {
      for (const std::int64_t k : axes[2]) {
        const Shape shape = {i, j, k};
        if (held + volume(shape) * per_voxel > limit) continue;
        const std::tuple<double, Shape> found = {work(plan, shape), shape};
        if (!best || found < *best) best = found;
      }
    }
  }
  return std::get<Shape>(*best);
}

}  // namespace rare_trt
