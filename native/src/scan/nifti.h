// Golden vectors as they lie in a package: small NIfTI files of bytes.
#pragma once

#include <string>
#include <vector>

#include "scan/voxels.h"

namespace rare_trt {

// Bytes [i, j, k, channel], i fastest, on a grid.
struct GoldenVolume {
  std::vector<std::uint8_t> bytes;
  std::int64_t channels;
  Grid grid;

  // Good for as long as this object is there.
  Voxels voxels() const;
};

// The .nii.gz file in `data`, called `name` in errors. Reads what rare-trt writes into packages,
// and throws PackageError for any other NIfTI: scans of the world are the caller's to read.
GoldenVolume golden_volume(const std::string& data, const std::string& name);

}  // namespace rare_trt
