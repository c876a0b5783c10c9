// From a scan to labels on its own grid. The C API is a thin layer over this class.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "package/reading.h"
#include "plan/resampling.h"
#include "scan/voxels.h"
#include "sessions/pool.h"
#include "stopwatch.h"

namespace rare_trt {

// How to segment a scan: a route other than the one that fits, points in world mm for a box around
// each; without any the whole scan.
struct Request {
  std::optional<int> route;
  std::vector<Triple> points_mm;
};

// How a scan was segmented.
struct Report {
  RouteDecision route;
  std::string backend;
  std::string arithmetic;
  bool touches_edge;
  int tiles;
  std::vector<double> volumes_mm3;       // by label; 0 for the background
  std::int64_t disputed_voxels;          // that two boxes label differently
  std::vector<std::string> label_flags;  // reasons to doubt the labels
  Timings timings;
};

// A package on a backend, ready to segment scans. Safe to use from several threads.
//
// Each route's graph or engine is loaded when the first scan needs it. Before its first run on a
// machine it must reproduce the package's golden vectors, or it is refused. With the backend
// `automatic` the next candidate then runs, with a warning; a backend requested by name throws
// BackendError.
class Segmenter {
 public:
  Segmenter(Package package, Backend backend, std::uint64_t gpu_memory_limit, Warn warn);

  const Manifest& manifest() const { return package_.manifest; }

  // Loads and checks every route.
  void preload();

  // The route for voxels of `spacing_mm`.
  RouteDecision choose(const Triple& spacing_mm, std::optional<int> route) const;

  // Writes the labels of `scan` to `labels`, 0 outside the segmented region, and fills `report`.
  // Nothing is written on failure. Throws ScanError where the scan cannot be segmented as it is.
  void segment(const Voxels& scan, const Grid& grid, const Request& request, const Labels& labels,
               Report& report);

 private:
  // The largest working shape that `session` runs in one piece.
  Shape max_shape(const Session& session, const Route& route, const ResamplingPlan& plan,
                  const Voxels& scan, const Shape& region) const;

  Package package_;
  SessionPool pool_;
};

}  // namespace rare_trt
