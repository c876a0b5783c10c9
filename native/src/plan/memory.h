// Host memory that segmenting a scan takes, and the tiles that keep it within a limit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "package/manifest.h"
#include "plan/resampling.h"

namespace rare_trt {

// kMemoryLimitBytes, or half of the machine's memory if that is less.
double usual_limit();

// Peak bytes of OpenVINO per working voxel of `route`, computing in `arithmetic`; none for an
// unknown network.
std::optional<double> bytes_per_voxel(const Model& model, int route, const std::string& arithmetic);

// What segmenting one scan takes: stored voxels of shape `scan` in `channels` of `itemsize` bytes
// each, a normalised image of shape `region` in as many channels, labels in `classes`, and
// `bytes_per_voxel` per working voxel of a run.
struct MemoryNeeds {
  Shape scan;
  Shape region;
  std::int64_t channels;
  std::int64_t itemsize;
  std::size_t classes;
  double bytes_per_voxel;

  // Bytes that stay in memory beside a run.
  double resident(const ResamplingPlan& plan) const;

  // Bytes that normalisation takes temporarily, beside what stays.
  double preparing() const;

  // Bytes of a run per working voxel, the logits of a finer output grid included.
  double per_voxel(const ResamplingPlan& plan) const;
};

// The largest working shape of a run so that the whole process stays within `limit` bytes.
//
// The whole volume where it fits, else the cheapest tiles, none smaller than the route's largest
// shape. Throws ScanError where not even the smallest tiles fit.
Shape tile_shape(const ResamplingPlan& plan, const Route& route, const MemoryNeeds& needs,
                 double limit);

}  // namespace rare_trt
