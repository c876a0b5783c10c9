#include "scan/validation.h"

#include <cmath>
#include <cstring>

#include "text.h"

namespace rare_trt {
namespace {

template <class Stored>
std::int64_t count_non_finite(const Voxels& voxels) {
  std::int64_t count = 0;
  for (std::int64_t channel = 0; channel < voxels.channels; ++channel) {
    for (std::int64_t i = 0; i < voxels.shape[0]; ++i) {
      for (std::int64_t j = 0; j < voxels.shape[1]; ++j) {
        const std::byte* row = voxels.data + channel * voxels.channel_stride +
                               i * voxels.strides[0] + j * voxels.strides[1];
        for (std::int64_t k = 0; k < voxels.shape[2]; ++k) {
          Stored value;
          std::memcpy(&value, row + k * voxels.strides[2], sizeof value);
          count += !std::isfinite(value);
        }
      }
    }
  }
  return count;
}

}  // namespace

void check_voxels(const Voxels& voxels, std::size_t channels) {
  if (voxels.channels != static_cast<std::int64_t>(channels)) {
    throw ScanError(text("the image has ", voxels.channels,
                         " channels or time points; this package takes ", channels,
                         ": extract the right volume(s)"));
  }
  std::int64_t count = 0;
  if (voxels.dtype == DType::f32) count = count_non_finite<float>(voxels);
  if (voxels.dtype == DType::f64) count = count_non_finite<double>(voxels);
  if (count == 0) return;
  const auto [ni, nj, nk] = voxels.shape;
  throw ScanError(text(count, " of ", ni * nj * nk * voxels.channels,
                       " voxels are NaN or infinite; expected finite numbers: correct the "
                       "reconstruction, or replace them on purpose"));
}

}  // namespace rare_trt
