// The route of a scan, decided from its voxel spacing alone and explained.
#pragma once

#include <optional>
#include <vector>

#include "scan/geometry.h"

namespace rare_trt {

// The geometry of one entry into the network.
struct Route {
  int index;
  double spacing_mm;                  // trained at
  std::array<double, 2> native_band;  // spacings, relative to spacing_mm, that are not resampled
  std::int64_t multiple;              // of which each working axis must be one
  Shape max_shape;                    // largest working shape of a single run

  // Working spacing of a scan of `spacing_mm`: per axis its own inside the native band, else the
  // route's.
  Triple working_spacing_mm(const Triple& spacing_mm) const;
};

// The route of a scan and why.
struct RouteDecision {
  int route;
  Triple spacing_mm;
  double effective_spacing_mm;  // root mean square over the axes, which decides
  Triple working_spacing_mm;
  Triple factors;        // working over scan spacing; 1: not resampled, above 1: made coarser
  double spacing_ratio;  // effective over route spacing
  std::optional<int> next_route;  // the nearest other one
  double next_spacing_ratio;      // effective over its spacing; 0 where there is none
  bool forced;

  bool resampled() const { return factors != Triple{1.0, 1.0, 1.0}; }
};

// The coarsest route that the effective spacing reaches, else the finest one; `forced` overrides
// it. Throws ScanError where an axis is finer or coarser than `limits_mm`, or `forced` is not among
// `routes`.
RouteDecision choose_route(const Triple& spacing_mm, const std::vector<Route>& routes,
                           const std::array<double, 2>& limits_mm, std::optional<int> forced);

}  // namespace rare_trt
