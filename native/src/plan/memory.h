// What segmenting a scan takes of the host's memory, and the tiles that keep it within a limit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "package/manifest.h"
#include "plan/resampling.h"

namespace rare_trt {

// 8 GiB, or half of this machine's memory if that is less.
double usual_memory_limit();

// What OpenVINO takes at its peak per working voxel of `route`, computing in `arithmetic`; nothing
// for an unknown network.
std::optional<double> bytes_per_voxel(const Model& model, int route, const std::string& arithmetic);

// The working shape that a run may have so that the whole process stays within `limit` bytes.
//
// The whole volume where it fits, else the tiles that cost least, none smaller than the route's
// largest shape. `per_voxel` is what a run takes per working voxel; `scan` is the scan's shape, of
// `channels` with `stored` bytes per voxel, and `shown` that of what is segmented of it, in
// `classes`. Throws ScanError where not even the smallest tiles fit.
Shape tile_shape(const Plan& plan, const Route& route, double per_voxel, const Shape& scan,
                 const Shape& shown, std::int64_t channels, std::int64_t stored,
                 std::size_t classes, double limit);

}  // namespace rare_trt
