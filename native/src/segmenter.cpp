#include "segmenter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "plan/memory.h"
#include "scan/field_of_view.h"
#include "sessions/golden.h"
#include "sessions/run.h"
#include "text.h"

namespace rare_trt {
namespace {

template <class Stored>
std::int64_t non_finite(const Voxels& voxels) {
  std::int64_t bad = 0;
  for (std::int64_t channel = 0; channel < voxels.channels; ++channel) {
    for (std::int64_t i = 0; i < voxels.shape[0]; ++i) {
      for (std::int64_t j = 0; j < voxels.shape[1]; ++j) {
        const std::byte* row = voxels.data + channel * voxels.channel_stride +
                               i * voxels.strides[0] + j * voxels.strides[1];
        for (std::int64_t k = 0; k < voxels.shape[2]; ++k) {
          Stored value;
          std::memcpy(&value, row + k * voxels.strides[2], sizeof value);
          bad += !std::isfinite(value);
        }
      }
    }
  }
  return bad;
}

void check_voxels(const Voxels& voxels, std::size_t channels) {
  if (voxels.channels != static_cast<std::int64_t>(channels)) {
    throw ScanError(text("the image has ", voxels.channels,
                         " channels or time points; this package takes ", channels,
                         ": extract the right volume(s)"));
  }
  std::int64_t bad = 0;
  if (voxels.dtype == DType::f32) bad = non_finite<float>(voxels);
  if (voxels.dtype == DType::f64) bad = non_finite<double>(voxels);
  if (bad == 0) return;
  const auto [ni, nj, nk] = voxels.shape;
  throw ScanError(text(bad, " of ", ni * nj * nk * voxels.channels,
                       " voxels are NaN or infinite; expected finite numbers: mend the "
                       "reconstruction, or replace them on purpose"));
}

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

// Volume of each label, counted on the answer's own grid.
std::vector<double> volumes_mm3(const std::vector<std::uint8_t>& answer, const Grid& target,
                                const Shape& parts, std::size_t classes) {
  std::vector<std::int64_t> counts(classes);
  for (const std::uint8_t label : answer) ++counts[label];
  const auto [x, y, z] = target.spacing_mm();
  const double voxel = x * y * z / static_cast<double>(parts[0] * parts[1] * parts[2]);
  std::vector<double> volumes(classes);
  for (std::size_t label = 1; label < classes; ++label) {
    volumes[label] = static_cast<double>(counts[label]) * voxel;
  }
  return volumes;
}

// Writes 0 everywhere and `answer` [i, j, k] into `box`; `labels` are seen in canonical order.
void write(const Labels& labels, const Box& box, const std::vector<std::uint8_t>& answer) {
  const auto at = [&](std::int64_t i, std::int64_t j, std::int64_t k) {
    return labels.data + i * labels.strides[0] + j * labels.strides[1] + k * labels.strides[2];
  };
  for (std::int64_t i = 0; i < labels.shape[0]; ++i) {
    for (std::int64_t j = 0; j < labels.shape[1]; ++j) {
      for (std::int64_t k = 0; k < labels.shape[2]; ++k) *at(i, j, k) = 0;
    }
  }
  auto label = answer.begin();
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
    : package_(std::move(package)),
      warn_(std::move(warn)),
      choice_(package_, backend, cache_, gpu_memory_limit, warn_) {}

void Segmenter::preload() {
  double ignored = 0;
  for (const Route& route : package_.manifest.routes) {
    with_session(
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
  Image image;
  {
    const Stopwatch clock(timings.prepare);
    check_voxels(scan, model.channels.size());
    region = region_of(scan, grid, model.field_of_view_mm, request.at_mm);
    report.route = choose(region->grid.spacing_mm(), request.route);
    image = normalised(region->voxels, model.intensity);
  }
  const Route& route = package_.route(report.route.route);
  Shape parts;
  Plan steps;
  {
    const Stopwatch clock(timings.plan);
    parts = answer_parts(region->grid, model.base_spacing_mm);
    steps = plan(region->grid, route, region->grid.subdivided(parts));
  }
  std::vector<std::uint8_t> answer;
  with_session(
      route.index,
      [&](Session& session) {
        const Shape max_shape = max_shape_of(session, route, steps, scan, region->box.shape);
        report.tiles = static_cast<int>(tiles(steps, max_shape).size());
        answer = answered(session, image, steps, max_shape, classes, timings);
        report.backend = session.backend;
        report.arithmetic = session.arithmetic;
      },
      timings.load);
  const Stopwatch clock(timings.labels);
  const auto found = largest_share(answer, steps.output_shape(), parts, classes);
  report.touches_edge = touches_edge(found, region->box.shape);
  report.volumes_mm3 = volumes_mm3(answer, region->grid, parts, model.labels.size());
  write(region->canonical.seen(labels), region->box, found);
}

Shape Segmenter::max_shape_of(const Session& session, const Route& route, const Plan& steps,
                              const Voxels& scan, const Shape& shown) const {
  if (session.backend != "openvino") return route.max_shape;
  const Model& model = package_.manifest.model;
  const auto per_voxel = bytes_per_voxel(model, route.index, session.arithmetic);
  if (!per_voxel) return route.max_shape;
  const auto stored =
      with_type(scan.dtype, [](auto value) { return static_cast<std::int64_t>(sizeof value); });
  return tile_shape(steps, route, *per_voxel, scan.shape, shown, scan.channels, stored,
                    model.labels.size(), usual_memory_limit());
}

void Segmenter::with_session(int route, const Work& work, double& load_ms) {
  std::vector<Place*> order;
  {
    const Stopwatch clock(load_ms);
    order = places(route);
  }
  for (std::size_t at = 0; at < order.size(); ++at) {
    try {
      std::shared_ptr<Session> session;
      {
        const Stopwatch clock(load_ms);
        session = opened(route, *order[at]);
      }
      work(*session);
      return;
    } catch (const BackendError& error) {
      if (at + 1 == order.size()) throw;
      pass_over(route, *order[at], error, *order[at + 1]);
    }
  }
}

std::vector<Segmenter::Place*> Segmenter::places(int route) {
  const std::lock_guard<std::mutex> lock(opening_);
  if (places_.count(route) == 0) {
    for (auto& candidate : choice_.candidates(route)) {
      places_[route].push_back({std::move(candidate), nullptr});
    }
  }
  std::vector<Place*> found;
  for (Place& place : places_[route]) {
    if (!place.passed_over) found.push_back(&place);
  }
  return found;
}

std::shared_ptr<Session> Segmenter::opened(int route, Place& place) {
  const std::lock_guard<std::mutex> lock(opening_);
  if (!place.session) {
    std::shared_ptr<Session> session = place.candidate.open();
    prove_once(*session, package_, route, cache_);
    place.session = std::move(session);
  }
  return place.session;
}

void Segmenter::pass_over(int route, Place& place, const BackendError& error, const Place& next) {
  std::string what = place.candidate.name;
  if (dynamic_cast<const ShapeError*>(&error) != nullptr) {
    what += " cannot answer this scan";
  } else {
    what += text(" is not used for route ", route, " any more");
    const std::lock_guard<std::mutex> lock(opening_);
    place.passed_over = true;
    place.session.reset();
  }
  warn_(text(what, "; ", next.candidate.name, " answers: ", error.what()));
}

}  // namespace rare_trt
