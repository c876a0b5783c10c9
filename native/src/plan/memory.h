// Host memory that segmenting a scan takes, and the tiles that keep it within a limit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "package/manifest.h"
#include "plan/resampling.h"

namespace rare_trt {

// kMemoryLimitBytes, or half of the machine's memory if that is less.
double usual_memory_limit();

// Peak bytes of OpenVINO per working voxel of `route`, computing in `arithmetic`; none for an
// unknown network.
std::optional<double> bytes_per_voxel(const Model& model, int route, const std::string& arithmetic);

// What decides, beside the run itself, how much memory segmenting a scan takes: `region` is the
// shape of the segmented part of `scan`.
struct ScanSize {
  Shape scan;
  Shape region;
  std::int64_t channels;
  std::int64_t bytes_per_channel;  // of one voxel, as stored
  std::size_t classes;
};

// The largest working shape of a run so that the whole process stays within `limit` bytes.
//
// The whole volume where it fits, else the cheapest tiles, none smaller than the route's largest
// shape. `per_voxel` is what a run takes per working voxel. Throws ScanError where not even the
// smallest tiles fit.
Shape tile_shape(const ResamplingPlan& plan, const Route& route, double per_voxel,
                 const ScanSize& size, double limit);

}  // namespace rare_trt
