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

// Adds the volume of each label, counted in the sub-voxels of the voxels that are `owned`, of which
// there are `parts` per axis and voxel, and `shape` voxels.
void count(const std::vector<std::uint8_t>& fine_labels, const std::vector<std::uint8_t>& owned,
           const Shape& shape, const Shape& parts, std::vector<std::int64_t>& counts) {
  auto label = fine_labels.begin();
  for (std::int64_t i = 0; i < shape[0] * parts[0]; ++i) {
    for (std::int64_t j = 0; j < shape[1] * parts[1]; ++j) {
      const std::int64_t row = (i / parts[0] * shape[1] + j / parts[1]) * shape[2];
      for (std::int64_t k = 0; k < shape[2] * parts[2]; ++k, ++label) {
        if (owned[static_cast<std::size_t>(row + k / parts[2])] != 0) ++counts[*label];
      }
    }
  }
}

std::vector<double> volumes_mm3(const std::vector<std::int64_t>& counts, const Grid& grid,
                                const Shape& parts) {
  const auto [x, y, z] = grid.spacing_mm();
  const double voxel = x * y * z / static_cast<double>(parts[0] * parts[1] * parts[2]);
  std::vector<double> volumes(counts.size());
  for (std::size_t label = 1; label < counts.size(); ++label) {
    volumes[label] = static_cast<double>(counts[label]) * voxel;
  }
  return volumes;
}

// The flags of the labels of one box, for any of which a strict run of the Python runtime refuses
// them. `present` says for each label whether it stands in a voxel of the scan there.
std::vector<std::string> label_flags(const Model& model, int route,
                                     const LabelStatistics& statistics,
                                     const std::vector<double>& volumes_mm3,
                                     const std::vector<bool>& present) {
  std::vector<std::string> found = doubtful_label_flags(statistics, route, model.label_distribution,
                                                        model.labels, model.channels.size());
  for (std::size_t label = 1; label < model.labels.size(); ++label) {
    const std::string& name = model.labels[label];
    const double volume = volumes_mm3[label];
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
  if (statistics.touch_edge) {
    found.emplace_back("a label touches the edge of the segmented field of view");
  }
  return found;
}

// Which of so many labels stand in a voxel of `box`, in canonical order.
std::vector<bool> present_labels(const Labels& labels, const Box& box, std::size_t classes) {
  std::vector<bool> present(classes);
  for (std::int64_t i = 0; i < box.shape[0]; ++i) {
    for (std::int64_t j = 0; j < box.shape[1]; ++j) {
      for (std::int64_t k = 0; k < box.shape[2]; ++k) {
        present[*labels.at(box.start[0] + i, box.start[1] + j, box.start[2] + k)] = true;
      }
    }
  }
  return present;
}

// Writes 0 everywhere.
void clear(const Labels& labels) {
  for (std::int64_t i = 0; i < labels.shape[0]; ++i) {
    for (std::int64_t j = 0; j < labels.shape[1]; ++j) {
      for (std::int64_t k = 0; k < labels.shape[2]; ++k) *labels.at(i, j, k) = 0;
    }
  }
}

// Writes those labels of `region` [i, j, k] that are `owned` into `box`, all in canonical order.
void write(const Labels& labels, const Box& box, const std::vector<std::uint8_t>& region,
           const std::vector<std::uint8_t>& owned) {
  auto label = region.begin();
  auto is_owned = owned.begin();
  for (std::int64_t i = 0; i < box.shape[0]; ++i) {
    for (std::int64_t j = 0; j < box.shape[1]; ++j) {
      for (std::int64_t k = 0; k < box.shape[2]; ++k, ++label) {
        if (*is_owned++ == 0) continue;
        *labels.at(box.start[0] + i, box.start[1] + j, box.start[2] + k) = *label;
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
  std::vector<Region> regions;
  std::vector<PreparedScan> prepared;
  {
    const Stopwatch clock(timings.prepare);
    check_voxels(scan, model.channels.size());
    if (request.points_mm.empty()) {
      regions.push_back(select_region(scan, grid, model.field_of_view_mm, std::nullopt));
    }
    for (const Triple& point : request.points_mm) {
      regions.push_back(select_region(scan, grid, model.field_of_view_mm, point));
    }
    // Boxes of one scan have its spacing.
    report.route = choose(regions.front().grid.spacing_mm(), request.route);
    for (const Region& region : regions) {
      prepared.emplace_back().image = normalise(region.voxels, model.intensity);
    }
  }
  const Route& route = package_.route(report.route.route);
  const Shape parts = subvoxel_counts(regions.front().grid, model.base_spacing_mm);
  {
    const Stopwatch clock(timings.plan);
    for (std::size_t at = 0; at < regions.size(); ++at) {
      const Grid& box = regions[at].grid;
      prepared[at].plan = plan_resampling(box, route, box.subdivide(parts));
    }
  }
  std::vector<std::vector<std::uint8_t>> fine_labels(regions.size());
  pool_.run(
      route.index,
      [&](Session& session) {
        report.tiles = 0;
        for (std::size_t at = 0; at < regions.size(); ++at) {
          PreparedScan& one = prepared[at];
          one.max_shape = max_shape(session, route, one.plan, scan, regions[at].box.shape);
          report.tiles += static_cast<int>(tiles(one.plan, one.max_shape).size());
          fine_labels[at] = run_tiles(session, one, classes, timings);
        }
        report.backend = session.backend;
        report.arithmetic = session.arithmetic;
      },
      timings.load);
  const Stopwatch clock(timings.labels);
  std::vector<std::vector<std::uint8_t>> found;
  std::vector<Box> boxes;
  for (std::size_t at = 0; at < regions.size(); ++at) {
    boxes.push_back(regions[at].box);
    found.push_back(
        majority_vote(fine_labels[at], prepared[at].plan.output_shape(), parts, classes));
  }
  const Grid& first = regions.front().grid;
  const auto divided = divide_overlaps(first.spacing_mm(), boxes, found);
  const Labels canonical = regions.front().canonical.from_scan(labels);
  std::vector<std::int64_t> counts(model.labels.size());
  clear(canonical);
  for (std::size_t at = 0; at < regions.size(); ++at) {
    count(fine_labels[at], divided.owned[at], boxes[at].shape, parts, counts);
    write(canonical, boxes[at], found[at], divided.owned[at]);
  }
  report.volumes_mm3 = volumes_mm3(counts, first, parts);
  report.touches_edge = false;
  for (std::size_t at = 0; at < regions.size(); ++at) {
    const Grid& box = regions[at].grid;
    const auto statistics =
        label_statistics(prepared[at].image, box, fine_labels[at], box.subdivide(parts),
                         model.labels.size(), model.intensity);
    std::vector<std::int64_t> of_box(model.labels.size());
    for (const std::uint8_t label : fine_labels[at]) ++of_box[label];
    const std::string where = regions.size() > 1 ? text("box ", at + 1, ": ") : "";
    for (const std::string& flag :
         label_flags(model, route.index, statistics, volumes_mm3(of_box, box, parts),
                     present_labels(canonical, boxes[at], model.labels.size()))) {
      report.label_flags.push_back(where + flag);
    }
    report.touches_edge |= statistics.touch_edge;
  }
  report.disputed_voxels = 0;
  for (const Dispute& dispute : divided.disputes) {
    report.disputed_voxels += dispute.voxels;
    report.label_flags.push_back(text(
        "boxes overlap: ", dispute.one + 1, " and ", dispute.two + 1, " label ", dispute.voxels,
        " voxels differently, and those of the box with the nearest centre were taken"));
  }
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
