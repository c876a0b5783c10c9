// From a scan to labels on its own grid: what the C API is a border to.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "package/reading.h"
#include "plan/resampling.h"
#include "scan/voxels.h"
#include "sessions/candidates.h"
#include "stopwatch.h"
#include "storage/cache.h"

namespace rare_trt {

struct Request {
  std::optional<int> route;
  std::optional<Triple> at_mm;
};

struct Report {
  RouteDecision route;
  std::string backend;
  std::string arithmetic;
  bool touches_edge;
  int tiles;
  std::vector<double> volumes_mm3;  // by label; 0 for the background
  Timings timings;
};

// A package on a backend, ready to segment scans. Safe to use from several threads.
//
// Each route's graph or engine is loaded when the first scan needs it. Before its first answer on a
// machine it must reproduce the package's golden vectors, or it is refused. With the backend
// `automatic` the next best one then answers, with a warning; a backend asked for by name answers
// or throws BackendError.
class Segmenter {
 public:
  Segmenter(Package package, Backend backend, std::uint64_t gpu_memory_limit, Warn warn);

  const Manifest& manifest() const { return package_.manifest; }

  // Loads and proves every route.
  void preload();

  // The route for voxels of `spacing_mm`.
  RouteDecision choose(const Triple& spacing_mm, std::optional<int> route) const;

  // Labels of `scan`, written to `labels` once all went well, and what became of it. Labels outside
  // of what was segmented are 0. Throws ScanError where the scan cannot be segmented as it is.
  void segment(const Voxels& scan, const Grid& grid, const Request& request, const Labels& labels,
               Report& report);

 private:
  // A candidate for a route, and its session once it was opened.
  struct Place {
    Candidate candidate;
    std::shared_ptr<Session> session;
    bool passed_over = false;
  };
  using Work = std::function<void(Session&)>;

  // The largest working shape that `session` runs in one piece.
  Shape max_shape_of(const Session& session, const Route& route, const Plan& steps,
                     const Voxels& scan, const Shape& shown) const;

  // Does `work` with the best session of `route`. One that fails makes way for the next one, for
  // good unless it was only the shapes of this scan that did not fit.
  void with_session(int route, const Work& work, double& load_ms);
  std::vector<Place*> places(int route);
  std::shared_ptr<Session> opened(int route, Place& place);
  void pass_over(int route, Place& place, const BackendError& error, const Place& next);

  Package package_;
  Cache cache_;
  Warn warn_;
  Choice choice_;
  std::mutex opening_;
  std::map<int, std::list<Place>> places_;
};

}  // namespace rare_trt
