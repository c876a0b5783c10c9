// Golden vectors in a package: small NIfTI files of bytes.
#pragma once

#include <string>
#include <vector>

#include "scan/voxels.h"

namespace rare_trt {

// Bytes [i, j, k, channel], i fastest, on a grid.
struct NiftiVolume {
  std::vector<std::uint8_t> bytes;
  std::int64_t channels;
  Grid grid;

  // Valid as long as this object.
  Voxels voxels() const;
};

// The volume in `data`, the bytes of a .nii.gz file that errors call `name`. Reads only what
// rare-trt writes into packages and throws PackageError otherwise: callers read scans themselves.
NiftiVolume volume_from_bytes(const std::string& data, const std::string& name);

}  // namespace rare_trt
