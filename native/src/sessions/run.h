// Tiled inference: a prepared scan through a session, inputs padded to buckets.
#pragma once

#include "plan/resampling.h"
#include "scan/intensity.h"
#include "sessions/session.h"
#include "stopwatch.h"

namespace rare_trt {

// A scan ready for one route: the normalised image and its resampling plan. Working shapes beyond
// `max_shape` are run in tiles.
struct PreparedScan {
  Image image;
  ResamplingPlan plan;
  Shape max_shape;
};

// The graph's inputs for one tile of `image`; axes are padded to buckets.
Inputs graph_inputs(const Image& image, const Tile& tile);

// Labels [oi, oj, ok] of `scan` on its plan's output grid, each below `classes`. Throws
// BackendError where a run returns another value.
std::vector<std::uint8_t> run_tiles(Session& session, const PreparedScan& scan, int classes,
                                    Timings& timings);

}  // namespace rare_trt
