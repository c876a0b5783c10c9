#include "plan/routing.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "constants.h"
#include "errors.h"
#include "text.h"

namespace rare_trt {
namespace {

void check_limits(const Triple& spacing_mm, const std::array<double, 2>& limits_mm) {
  const auto [low, high] = limits_mm;
  for (const double spacing : spacing_mm) {
    if (low * (1 - kSpacingTolerance) <= spacing && spacing <= high * (1 + kSpacingTolerance))
      continue;
    throw ScanError(
        text("the voxel spacing is ", join(spacing_mm, " x "), " mm; this package takes ",
             number(low), " to ", number(high),
             " mm along each axis: resample the scan, or use a package trained for it"));
  }
}

// Indices into `routes`, finest first.
std::vector<std::size_t> by_spacing(const std::vector<Route>& routes) {
  std::vector<std::size_t> order(routes.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return routes[a].spacing_mm < routes[b].spacing_mm;
  });
  return order;
}

std::size_t forced_route(const std::vector<Route>& routes, int forced) {
  std::string known;
  for (std::size_t i = 0; i < routes.size(); ++i) {
    if (routes[i].index == forced) return i;
    known += (known.empty() ? "" : ", ") + std::to_string(routes[i].index);
  }
  throw ScanError(
      text("route ", forced, " was requested; this package has ", known, ": choose one"));
}

}  // namespace

Triple Route::working_spacing_mm(const Triple& spacing_mm) const {
  Triple working;
  for (int axis = 0; axis < 3; ++axis) {
    const double share = spacing_mm[axis] / this->spacing_mm;
    const bool native = native_band[0] <= share && share <= native_band[1];
    working[axis] = native ? spacing_mm[axis] : this->spacing_mm;
  }
  return working;
}

RouteDecision choose_route(const Triple& spacing_mm, const std::vector<Route>& routes,
                           const std::array<double, 2>& limits_mm, std::optional<int> forced) {
  check_limits(spacing_mm, limits_mm);
  // Wider than double, so that the sum does not depend on the order of the axes.
  long double squares = 0;
  for (const double spacing : spacing_mm) squares += spacing * spacing;
  const double effective = std::sqrt(static_cast<double>(squares) / 3);
  const auto order = by_spacing(routes);
  std::size_t chosen = order.front();
  for (const std::size_t index : order) {
    if (kCoarserFrom * routes[index].spacing_mm <= effective) chosen = index;
  }
  if (forced) chosen = forced_route(routes, *forced);
  std::optional<std::size_t> nearest;
  const auto away = [&](std::size_t i) {
    return std::abs(std::log(effective / routes[i].spacing_mm));
  };
  for (const std::size_t index : order) {
    if (index != chosen && (!nearest || away(index) < away(*nearest))) nearest = index;
  }
  RouteDecision decision{};
  decision.route = routes[chosen].index;
  decision.spacing_mm = spacing_mm;
  decision.effective_spacing_mm = effective;
  decision.working_spacing_mm = routes[chosen].working_spacing_mm(spacing_mm);
  for (int axis = 0; axis < 3; ++axis) {
    decision.factors[axis] = decision.working_spacing_mm[axis] / spacing_mm[axis];
  }
  decision.spacing_ratio = effective / routes[chosen].spacing_mm;
  decision.forced = forced.has_value();
  if (nearest) {
    decision.next_route = routes[*nearest].index;
    decision.next_spacing_ratio = effective / routes[*nearest].spacing_mm;
  }
  return decision;
}

}  // namespace rare_trt
