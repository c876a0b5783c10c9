#include "plan/memory.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <tuple>
#include <vector>

#include "constants.h"
#include "errors.h"
#include "text.h"

namespace rare_trt {
namespace {

constexpr double kMiB = 1 << 20;

double volume(const Shape& shape) {
  return static_cast<double>(shape[0]) * static_cast<double>(shape[1]) *
         static_cast<double>(shape[2]);
}

// Sizes of a tile along `axis`, ascending: for each number of tiles the smallest that suffices.
std::set<std::int64_t> axis_choices(const ResamplingPlan& plan, const Route& route,
                                    std::size_t axis) {
  const std::int64_t whole = plan.working_shape()[axis], trained = route.max_shape[axis];
  std::set<std::int64_t> counts, sizes = {std::min(whole, trained), whole};
  for (std::int64_t size = trained; size < whole; size += route.multiple) {
    if (counts.insert(tile_count(plan.core[axis], size)).second) sizes.insert(size);
  }
  return sizes;
}

// Working voxels of all runs in tiles of `shape`, overlap included.
double work(const ResamplingPlan& plan, const Shape& shape) {
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

double usual_limit() {
  const auto pages = static_cast<double>(sysconf(_SC_PHYS_PAGES));
  return std::min(static_cast<double>(kMemoryLimitBytes),
                  std::floor(pages * static_cast<double>(sysconf(_SC_PAGE_SIZE)) / 2));
}

std::optional<double> bytes_per_voxel(const Model& model, int route,
                                      const std::string& arithmetic) {
  if (!model.filters) return std::nullopt;
  const double per_filter = needs_bf16(arithmetic) ? kBytesPerFilterBf16 : kBytesPerFilter;
  return static_cast<double>(*model.filters << route) * per_filter;
}

double MemoryNeeds::resident(const ResamplingPlan& plan) const {
  // The scan in two orders of axes, the image, and the labels of the output grid and of the scan.
  const double output = volume(plan.output_shape());
  return static_cast<double>(kFixedBytes) +
         volume(scan) * static_cast<double>(channels * 2 * itemsize) +
         volume(region) * static_cast<double>(channels * 4) + output +
         std::max(output, volume(scan));
}

double MemoryNeeds::preparing() const {
  return volume(region) * static_cast<double>(kPreparedBytes);
}

double MemoryNeeds::per_voxel(const ResamplingPlan& plan) const {
  const double finer = volume(plan.output_shape()) / volume(plan.working_shape()) - 1.0;
  return bytes_per_voxel + std::max(0.0, finer) * kLogitBytes * static_cast<double>(classes);
}

Shape tile_shape(const ResamplingPlan& plan, const Route& route, const MemoryNeeds& needs,
                 double limit) {
  const double resident = needs.resident(plan), per_voxel = needs.per_voxel(plan);
  const double preparing = resident + needs.preparing();
  const Shape whole = plan.working_shape();
  if (std::max(preparing, resident + volume(whole) * per_voxel) <= limit) return whole;
  std::array<std::set<std::int64_t>, 3> axes;
  for (std::size_t axis = 0; axis < 3; ++axis) axes[axis] = axis_choices(plan, route, axis);
  const Shape smallest = {*axes[0].begin(), *axes[1].begin(), *axes[2].begin()};
  const double needed = std::ceil(std::max(preparing, resident + volume(smallest) * per_voxel));
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
        if (resident + volume(shape) * per_voxel > limit) continue;
        const std::tuple<double, Shape> found = {work(plan, shape), shape};
        if (!best || found < *best) best = found;
      }
    }
  }
  return std::get<Shape>(*best);
}

}  // namespace rare_trt
