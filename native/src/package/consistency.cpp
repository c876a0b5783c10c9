#include "package/consistency.h"

#include <algorithm>
#include <set>
#include <utility>

#include "text.h"

namespace rare_trt {
namespace {

using Fault = std::optional<std::string>;
using RoutePrecisions = std::set<std::pair<int, std::string>>;

RoutePrecisions graphs_of(const Manifest& manifest) {
  RoutePrecisions found;
  for (const auto& entry : manifest.graphs) found.emplace(entry.route, entry.precision);
  return found;
}

RoutePrecisions graphs_and_engines_of(const Manifest& manifest) {
  RoutePrecisions found = graphs_of(manifest);
  for (const auto& entry : manifest.engines) found.emplace(entry.route, entry.precision);
  return found;
}

std::set<int> routes_of(const Manifest& manifest) {
  std::set<int> found;
  for (const auto& entry : manifest.routes) found.insert(entry.index);
  return found;
}

Fault routes_are_distinct(const Manifest& manifest) {
  if (routes_of(manifest).size() == manifest.routes.size()) return {};
  return "its routes name one twice";
}

Fault routes_exist(const Manifest& manifest) {
  std::vector<int> used;
  for (const auto& [route, precision] : graphs_and_engines_of(manifest)) used.push_back(route);
  for (const auto& entry : manifest.golden) used.push_back(entry.route);
  for (const auto& entry : manifest.calibration) used.push_back(entry.route);
  const std::set<int> known = routes_of(manifest);
  for (const int route : used) {
    if (known.count(route) == 0) return text("route ", route, " is named but not among them");
  }
  return {};
}

Fault files_are_not_the_manifest(const Manifest& manifest) {
  for (const std::string own : {"manifest.json", "manifest.sig"}) {
    if (manifest.files.count(own) != 0) return own + " is among the files, which it describes";
  }
  return {};
}

Fault files_are_listed(const Manifest& manifest) {
  std::vector<std::string> named;
  for (const auto& entry : manifest.graphs) named.insert(named.end(), {entry.file, entry.weights});
  for (const auto& entry : manifest.engines) named.push_back(entry.file);
  for (const auto& entry : manifest.calibration) named.push_back(entry.table);
  for (const auto& entry : manifest.golden) named.insert(named.end(), {entry.scan, entry.labels});
  for (const auto& name : named) {
    if (manifest.files.count(name) == 0) return name + " is named but not among the files";
  }
  return {};
}

// Every graph and engine needs golden vectors of its route, each with a bound for its precision.
Fault precisions_have_golden_vectors(const Manifest& manifest) {
  for (const auto& [route, precision] : graphs_and_engines_of(manifest)) {
    bool any = false;
    for (const auto& entry : manifest.golden) {
      if (entry.route != route) continue;
      any = true;
      if (entry.max_disagreement.count(precision) == 0) {
        return "golden vector " + entry.scan + " has no bound for " + precision;
      }
    }
    if (!any) return text("no golden vector for route ", route, " in ", precision);
  }
  return {};
}

// Every calibrated variant needs its graph, and a bound in each golden vector of its route.
Fault variants_have_graphs_and_bounds(const Manifest& manifest) {
  const RoutePrecisions graphs = graphs_of(manifest);
  std::set<int> calibrated;
  for (const auto& entry : manifest.calibration) {
    if (!calibrated.insert(entry.route).second) {
      return text("route ", entry.route, " was calibrated twice");
    }
    for (const auto& variant : entry.variants) {
      if (graphs.count({entry.route, graph_precision(variant)}) == 0) {
        return text("route ", entry.route, " has a variant ", variant, " without its graph");
      }
      for (const auto& vector : manifest.golden) {
        if (vector.route == entry.route && vector.max_disagreement.count(variant) == 0) {
          return text("no bound for ", variant, " on route ", entry.route);
        }
      }
    }
  }
  return {};
}

Fault int8_graphs_are_calibrated(const Manifest& manifest) {
  std::set<int> calibrated;
  for (const auto& entry : manifest.calibration) calibrated.insert(entry.route);
  for (const auto& [route, precision] : graphs_of(manifest)) {
    if (precision == "int8" && calibrated.count(route) == 0) {
      return text("route ", route, " has an INT8 graph without its calibration");
    }
  }
  return {};
}

Fault labels_have_volume_ranges(const Manifest& manifest) {
  const std::size_t ranges = manifest.model.volume_range_mm3.size();
  const std::size_t labels = manifest.model.labels.size() - 1;
  if (ranges == labels) return {};
  return text(ranges, " volume ranges for ", labels, " labels");
}

Fault limits_are_in_order(const Manifest& manifest) {
  const auto rises = [](const std::array<double, 2>& pair) { return pair[0] < pair[1]; };
  const auto& routes = manifest.routes;
  if (rises(manifest.model.spacing_limits_mm) && rises(manifest.model.intensity.clip_percentiles) &&
      std::all_of(routes.begin(), routes.end(),
                  [&](const Route& route) { return rises(route.native_band); })) {
    return {};
  }
  return "a lower limit is not below its upper one";
}

Fault distribution_fits_the_channels(const Manifest& manifest) {
  const std::size_t channels = manifest.model.channels.size();
  const auto& found = manifest.model.distribution_channels;
  if (std::all_of(found.begin(), found.end(), [&](auto count) { return count == channels; })) {
    return {};
  }
  return text("the training distribution is not there once per channel (", channels, ")");
}

bool has_size(const Gaussian& gaussian, std::size_t size) {
  if (gaussian.mean.size() != size || gaussian.deviation.size() != size) return false;
  if (gaussian.whitening.size() != size) return false;
  for (std::size_t row = 0; row < size; ++row) {
    if (gaussian.whitening[row].size() != row + 1) return false;
  }
  return true;
}

Fault label_distribution_fits_labels_and_channels(const Manifest& manifest) {
  const std::size_t labels = manifest.model.labels.size() - 1;
  const std::size_t shape = labels * kShapeStatistics + (labels - 1) * kPositionStatistics;
  const std::size_t content = labels * manifest.model.channels.size() * kContentStatistics;
  for (const auto& entry : manifest.model.label_distribution) {
    if (has_size(entry.shape, shape) && has_size(entry.content, content)) continue;
    return text("the distribution of labels on route ", entry.route, " does not have ", shape,
                " and ", content, " statistics");
  }
  return {};
}

Fault weights_lie_beside_their_graph(const Manifest& manifest) {
  const auto folder = [](const std::string& path) {
    return path.substr(0, path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  };
  for (const auto& entry : manifest.graphs) {
    if (folder(entry.file) != folder(entry.weights)) {
      return "a graph and its weights lie in different folders";
    }
  }
  return {};
}

// In this order: a rule can rely on those before it.
constexpr Fault (*kRules[])(const Manifest&) = {routes_are_distinct,
                                                routes_exist,
                                                files_are_not_the_manifest,
                                                files_are_listed,
                                                precisions_have_golden_vectors,
                                                variants_have_graphs_and_bounds,
                                                int8_graphs_are_calibrated,
                                                labels_have_volume_ranges,
                                                limits_are_in_order,
                                                distribution_fits_the_channels,
                                                label_distribution_fits_labels_and_channels,
                                                weights_lie_beside_their_graph};

}  // namespace

std::optional<std::string> first_fault(const Manifest& manifest) {
  for (const auto rule : kRules) {
    if (auto fault = rule(manifest)) return fault;
  }
  return {};
}

}  // namespace rare_trt
