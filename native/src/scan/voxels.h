// Voxels and labels in the caller's memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "errors.h"
#include "scan/geometry.h"

namespace rare_trt {

enum class DType { u8, i8, u16, i16, u32, i32, u64, i64, f32, f64 };

// Calls `work` with a value of the type `dtype`.
template <class Work>
decltype(auto) with_type(DType dtype, const Work& work) {
  switch (dtype) {
    case DType::u8:
      return work(std::uint8_t{});
    case DType::i8:
      return work(std::int8_t{});
    case DType::u16:
      return work(std::uint16_t{});
    case DType::i16:
      return work(std::int16_t{});
    case DType::u32:
      return work(std::uint32_t{});
    case DType::i32:
      return work(std::int32_t{});
    case DType::u64:
      return work(std::uint64_t{});
    case DType::i64:
      return work(std::int64_t{});
    case DType::f32:
      return work(float{});
    case DType::f64:
      return work(double{});
  }
  throw ArgumentError("the voxels are of an unknown type");
}

// A box of a voxel grid.
struct Box {
  Shape start;
  Shape shape;
};

// A view of voxels [i, j, k] in `channels` channels. Strides are in bytes.
struct Voxels {
  const std::byte* data;
  DType dtype;
  Shape shape;
  Strides strides;
  std::int64_t channels;
  std::int64_t channel_stride;

  // The voxels of `box`, in the same memory.
  Voxels part(const Box& box) const {
    Voxels found = *this;
    for (int axis = 0; axis < 3; ++axis) found.data += box.start[axis] * strides[axis];
    found.shape = box.shape;
    return found;
  }
};

// A view of labels [i, j, k] to write, one byte each. Strides are in bytes.
struct Labels {
  std::uint8_t* data;
  Shape shape;
  Strides strides;

  std::uint8_t* at(std::int64_t i, std::int64_t j, std::int64_t k) const {
    return data + i * strides[0] + j * strides[1] + k * strides[2];
  }
};

}  // namespace rare_trt
