// A planned run through a session: tile by tile, inputs padded to buckets.
#pragma once

#include "plan/resampling.h"
#include "scan/intensity.h"
#include "sessions/session.h"
#include "stopwatch.h"

namespace rare_trt {

// What the graph takes for one tile of `image`; axes are padded to buckets.
Inputs graph_inputs(const Image& image, const Tile& tile);

// Labels [oi, oj, ok] of `image` on the plan's output grid, `classes` of them. Throws BackendError
// where a run gives anything that is no label.
std::vector<std::uint8_t> answered(Session& session, const Image& image, const Plan& plan,
                                   const Shape& max_shape, int classes, Timings& timings);

}  // namespace rare_trt
