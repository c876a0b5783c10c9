// Validation of a scan's voxels.
#pragma once

#include "scan/voxels.h"

namespace rare_trt {

// Throws ScanError where the scan does not have `channels` channels, or where a voxel is NaN or
// infinite.
void check_voxels(const Voxels& voxels, std::size_t channels);

}  // namespace rare_trt
