// Which route answers a scan: decided from its voxel spacing alone, and explained.
#pragma once

#include <optional>
#include <vector>

#include "scan/geometry.h"

namespace rare_trt {

// An entry into the network, as far as geometry is concerned.
struct Route {
  int index;
  double spacing_mm;                  // what it was trained at
  std::array<double, 2> native_band;  // spacings, relative to that, that it takes as they are
  std::int64_t multiple;              // what each working axis must be a multiple of
  Shape max_shape;                    // the largest working shape it runs in one piece

  // What a scan of `spacing_mm` is run at: per axis its own inside the native band.
  Triple working_spacing_mm(const Triple& spacing_mm) const;
};

// The route taken for a scan and why.
struct RouteDecision {
  int route;
  Triple spacing_mm;
  double effective_spacing_mm;  // the one number the choice was made by
  Triple working_spacing_mm;
  Triple factors;   // working over scan spacing; 1: not resampled, above 1: made coarser
  double distance;  // effective over route spacing
  std::optional<int> next_route;  // the nearest other one
  double next_distance;           // the same for it; 0 where there is none
  bool forced;

  bool resampled() const { return factors != Triple{1.0, 1.0, 1.0}; }
};

// The coarsest route that the scan's effective spacing reaches, else the finest one. Throws
// ScanError where an axis is finer or coarser than `limits_mm`, or `forced` is not among `routes`.
RouteDecision choose_route(const Triple& spacing_mm, const std::vector<Route>& routes,
                           const std::array<double, 2>& limits_mm, std::optional<int> forced);

}  // namespace rare_trt
