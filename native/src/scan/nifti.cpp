#include "scan/nifti.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "text.h"

namespace rare_trt {
namespace {

// Offsets into NIfTI-1's header of 348 bytes, little-endian; voxels begin after 4 bytes more.
constexpr std::size_t kVoxelStart = 352;
constexpr std::size_t kDim = 40, kDataType = 70, kVoxOffset = 108, kSlope = 112, kIntercept = 116,
                      kUnits = 123, kSformCode = 254, kSrow = 280, kMagic = 344;
constexpr std::int16_t kUint8 = 2;
constexpr int kMillimetres = 2;

// Larger than any golden vector; bounds what a few bytes can inflate to.
constexpr std::size_t kMaxBytes = 1 << 28;

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
  throw PackageError(
      text(name, ": is not a readable golden vector (", what, "): build the package again"));
}

std::string inflate_gzip(const std::string& data, const std::string& name) {
  z_stream stream{};
  // 16: a gzip header.
  if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK) refuse(name, "zlib cannot start");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> end(&stream, inflateEnd);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  std::string out;
  std::array<char, 1 << 16> block;
  int status = Z_OK;
  while (status == Z_OK) {
    stream.next_out = reinterpret_cast<Bytef*>(block.data());
    stream.avail_out = static_cast<uInt>(block.size());
    status = inflate(&stream, Z_NO_FLUSH);
    out.append(block.data(), block.size() - stream.avail_out);
    if (out.size() > kMaxBytes) refuse(name, "it is too large");
  }
  if (status != Z_STREAM_END) refuse(name, "its gzip stream is damaged");
  return out;
}

template <class Value>
Value field(const std::string& data, std::size_t offset) {
  std::array<char, sizeof(Value)> bytes;
  std::copy_n(data.begin() + static_cast<std::ptrdiff_t>(offset), bytes.size(), bytes.begin());
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  std::reverse(bytes.begin(), bytes.end());
#endif
  Value value;
  std::memcpy(&value, bytes.data(), bytes.size());
  return value;
}

// How the header differs from what rare-trt writes; empty where it does not.
std::string header_fault(const std::string& data) {
  if (data.size() < kVoxelStart) return "it is too short";
  if (data.compare(kMagic, 4, std::string("n+1\0", 4)) != 0) return "it is not a NIfTI-1 file";
  if (field<std::int16_t>(data, kDataType) != kUint8) return "its voxels are not bytes";
  if (field<float>(data, kVoxOffset) != static_cast<float>(kVoxelStart)) return "it has extensions";
  if (field<float>(data, kSlope) != 1.0F || field<float>(data, kIntercept) != 0.0F) {
    return "its voxels are scaled";
  }
  if (field<std::int16_t>(data, kSformCode) <= 0) return "it has no sform";
  if ((data[kUnits] & 7) != kMillimetres) return "it is not in mm";
  return "";
}

Grid grid(const std::string& data, const Shape& shape) {
  Affine affine = Affine::Identity();
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 4; ++column) {
      const auto at = kSrow + static_cast<std::size_t>(4 * row + column) * sizeof(float);
      affine(row, column) = static_cast<double>(field<float>(data, at));
    }
  }
  return {shape, affine};
}

}  // namespace

Voxels NiftiVolume::voxels() const {
  const auto [ni, nj, nk] = grid.shape();
  return {reinterpret_cast<const std::byte*>(bytes.data()),
          DType::u8,
          grid.shape(),
          {1, ni, ni * nj},
          channels,
          ni * nj * nk};
}

NiftiVolume volume_from_bytes(const std::string& compressed, const std::string& name) {
  const std::string data = inflate_gzip(compressed, name);
  const std::string fault = header_fault(data);
  if (!fault.empty()) refuse(name, fault);
  const auto axes = field<std::int16_t>(data, kDim);
  if (axes != 3 && axes != 4) refuse(name, text("it has ", axes, " axes"));
  std::array<std::int64_t, 4> size = {1, 1, 1, 1};
  std::int64_t count = 1;
  for (std::size_t axis = 0; axis < static_cast<std::size_t>(axes); ++axis) {
    size[axis] = field<std::int16_t>(data, kDim + 2 * (axis + 1));
    if (size[axis] < 1) refuse(name, "an axis is empty");
    count *= size[axis];
  }
  if (data.size() - kVoxelStart != static_cast<std::size_t>(count)) {
    refuse(name, text("it holds ", data.size() - kVoxelStart, " voxels; expected ", count));
  }
  try {
    return {
        {data.begin() + kVoxelStart, data.end()}, size[3], grid(data, {size[0], size[1], size[2]})};
  } catch (const ScanError& error) {
    refuse(name, error.what());
  }
}

}  // namespace rare_trt
