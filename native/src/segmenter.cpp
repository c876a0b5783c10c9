#include "segmenter.h"

#include <algorithm>
#include <utility>

#include "plan/memory.h"
#include "scan/field_of_view.h"
#include "scan/validation.h"
#include "sessions/run.h"
#include "text.h"

namespace rare_trt {
namespace {

bool touches_edge(const std::vector<std::uint8_t>& labels, const Shape& shape) {
  const auto outer = [](std::int64_t at, std::int64_t size) { return at == 0 || at == size - 1; };
  auto label = labels.begin();
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    for (std::int64_t j = 0; j < shape[1]; ++j) {
      for (std::int64_t k = 0; k < shape[2]; ++k) {
        const bool edge = outer(i, shape[0]) || outer(j, shape[1]) || outer(k, shape[2]);
        if (*label++ != 0 && edge) return true;
      }
    }
  }
  return false;
}

// Volume of each label, counted in the sub-voxels of `grid`, of which there are `parts` per axis.
std::vector<double> volumes_mm3(const std::vector<std::uint8_t>& fine_labels, const Grid& grid,
                                const Shape& parts, std::size_t classes) {
  std::vector<std::int64_t> counts(classes);
  for (const std::uint8_t label : fine_labels) ++counts[label];
  const auto [x, y, z] = grid.spacing_mm();
  const double voxel = x * y * z / static_cast<double>(parts[0] * parts[1] * parts[2]);
  std::vector<double> volumes(classes);
  for (std::size_t label = 1; label < classes; ++label) {
    volumes[label] = static_cast<double>(counts[label]) * voxel;
  }
  return volumes;
}

// Writes 0 everywhere and `region` [i, j, k] into `box`, all in canonical order.
void write(const Labels& labels, const Box& box, const std::vector<std::uint8_t>& region) {
  const auto at = [&](std::int64_t i, std::int64_t j, std::int64_t k) {
    return labels.data + i * labels.strides[0] + j * labels.strides[1] + k * labels.strides[2];
  };
  for (std::int64_t i = 0; i < labels.shape[0]; ++i) {
    for (std::int64_t j = 0; j < labels.shape[1]; ++j) {
      for (std::int64_t k = 0; k < labels.shape[2]; ++k) *at(i, j, k) = 0;
    }
  }
  auto label = region.begin();
  for (std::int64_t i = 0; i < box.shape[0]; ++i) {
    for (std::int64_t j = 0; j < box.shape[1]; ++j) {
      for (std::int64_t k = 0; k < box.shape[2]; ++k) {
        *at(box.start[0] + i, box.start[1] + j, box.start[2] + k) = *label++;
      }
    }
  }
}

}  // namespace

Segmenter::Segmenter(Package package, Backend backend, std::uint64_t gpu_memory_limit, Warn warn)
    : package_(std::move(package)), pool_(package_, backend, gpu_memory_limit, std::move(warn)) {}

void Segmenter::preload() {
  double ignored = 0;
  for (const Route& route : package_.manifest.routes) {
    pool_.run(
        route.index, [](Session&) {}, ignored);
  }
}

RouteDecision Segmenter::choose(const Triple& spacing_mm, std::optional<int> route) const {
  const Manifest& manifest = package_.manifest;
  return choose_route(spacing_mm, manifest.routes, manifest.model.spacing_limits_mm, route);
}

void Segmenter::segment(const Voxels& scan, const Grid& grid, const Request& request,
                        const Labels& labels, Report& report) {
  const Model& model = package_.manifest.model;
  const auto classes = static_cast<int>(model.labels.size());
  Timings& timings = report.timings;
  const Stopwatch total(timings.total);
  std::optional<Region> region;
  PreparedScan prepared;
  {
    const Stopwatch clock(timings.prepare);
    check_voxels(scan, model.channels.size());
    region = select_region(scan, grid, model.field_of_view_mm, request.at_mm);
    report.route = choose(region->grid.spacing_mm(), request.route);
    prepared.image = normalise(region->voxels, model.intensity);
  }
  const Route& route = package_.route(report.route.route);
  Shape parts;
  {
    const Stopwatch clock(timings.plan);
    parts = subvoxel_counts(region->grid, model.base_spacing_mm);
    prepared.plan = plan_resampling(region->grid, route, region->grid.subdivide(parts));
  }
  std::vector<std::uint8_t> fine_labels;
  pool_.run(
      route.index,
      [&](Session& session) {
        prepared.max_shape = max_shape(session, route, prepared.plan, scan, region->box.shape);
        report.tiles = static_cast<int>(tiles(prepared.plan, prepared.max_shape).size());
        fine_labels = run_tiles(session, prepared, classes, timings);
        report.backend = session.backend;
        report.arithmetic = session.arithmetic;
      },
      timings.load);
  const Stopwatch clock(timings.labels);
  const auto found = majority_vote(fine_labels, prepared.plan.output_shape(), parts, classes);
  report.touches_edge = touches_edge(found, region->box.shape);
  report.volumes_mm3 = volumes_mm3(fine_labels, region->grid, parts, model.labels.size());
  write(region->canonical.from_scan(labels), region->box, found);
}

Shape Segmenter::max_shape(const Session& session, const Route& route, const ResamplingPlan& plan,
                           const Voxels& scan, const Shape& region) const {
  const Model& model = package_.manifest.model;
  const auto per_voxel = bytes_per_voxel(model, route.index, session.arithmetic);
  // The profile bounds an engine's shapes.
  if (session.backend != "openvino" || !per_voxel) return route.max_shape;
  const auto stored =
      with_type(scan.dtype, [](auto value) { return static_cast<std::int64_t>(sizeof value); });
  const MemoryNeeds needs = {scan.shape,          region,    scan.channels, stored,
                             model.labels.size(), *per_voxel};
  return tile_shape(plan, route, needs, usual_limit());
}

}  // namespace rare_trt
