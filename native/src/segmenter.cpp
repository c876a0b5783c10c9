#include "segmenter.h"

#include <algorithm>
#include <utility>

#include "plan/memory.h"
#include "scan/field_of_view.h"
#include "scan/out_of_distribution.h"
#include "scan/validation.h"
#include "sessions/run.h"
#include "text.h"

namespace rare_trt {
namespace {

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

// The flags of labels, for any of which a strict run of the Python runtime refuses them. `written`
// are the labels of the scan's own voxels.
std::vector<std::string> label_flags(const Model& model, const LabelStatistics& statistics,
                                     const std::vector<std::uint8_t>& written,
                                     const Report& report) {
  std::vector<std::string> found =
      doubtful_label_flags(statistics, report.route.route, model.label_distribution, model.labels,
                           model.channels.size());
  std::vector<bool> present(model.labels.size());
  for (const std::uint8_t label : written) present[label] = true;
  for (std::size_t label = 1; label < model.labels.size(); ++label) {
    const std::string& name = model.labels[label];
    const double volume = report.volumes_mm3[label];
    const auto& range = model.volume_range_mm3[label - 1];
    if (volume == 0) {
      found.push_back("empty label: " + name);
    } else if (!present[label]) {
      found.push_back(text("label lost on this grid: ", name, " has ", number(volume, 3),
                           " mm3, but in no voxel the majority; choose a finer grid with "
                           "--spacing-out"));
    } else if (volume < range[0] || volume > range[1]) {
      found.push_back(text("volume outside the training range: ", name, " ",
                           range_text(volume, range, 0, " mm3"), ")"));
    }
  }
  if (report.touches_edge) {
    found.emplace_back("a label touches the edge of the segmented field of view");
  }
  return found;
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
  const Shape parts = subvoxel_counts(region->grid, model.base_spacing_mm);
  const Grid fine = region->grid.subdivide(parts);
  {
    const Stopwatch clock(timings.plan);
    prepared.plan = plan_resampling(region->grid, route, fine);
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
  report.volumes_mm3 = volumes_mm3(fine_labels, region->grid, parts, model.labels.size());
  const auto statistics = label_statistics(prepared.image, region->grid, fine_labels, fine,
                                           model.labels.size(), model.intensity);
  report.touches_edge = statistics.touch_edge;
  report.label_flags = label_flags(model, statistics, found, report);
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
