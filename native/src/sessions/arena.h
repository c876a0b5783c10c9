// One block of GPU memory and one of pinned host memory, shared by all engines of a package.
#pragma once

#include <array>

#include "sessions/device.h"
#include "sessions/session.h"

namespace rare_trt {

// Bytes of an arena.
struct Span {
  std::size_t start = 0, size = 0;
};

// Offsets of a run's arrays in the arena: inputs, labels, scratch.
//
// Host and device share the offsets of inputs and labels, so that one copy carries all inputs.
struct Layout {
  std::array<Span, kInputNames.size()> inputs;
  Span labels, scratch;

  std::size_t input_bytes() const { return labels.start; }
  std::size_t host_bytes() const;
  std::size_t device_bytes() const;
};

// Float32 inputs of `shapes`, then the labels, then the engine's scratch memory.
Layout layout_of(const std::array<std::vector<std::int64_t>, kInputNames.size()>& shapes,
                 std::size_t label_bytes, std::size_t scratch_bytes);

// Grows to the largest layout so far. `generation` changes whenever addresses do.
class Arena {
 public:
  explicit Arena(Device& device) : device_(device) {}

  const HostBuffer& host() const { return host_; }

  // Whether the GPU reads inputs and writes labels in host memory, as on a Jetson.
  bool shared() const { return device_.gpu().integrated; }

  // The GPU's address of inputs and labels.
  cuda::Address io_address() const { return shared() ? host_.device : address_; }

  // The GPU's address of scratch, and of inputs and labels too where memory is not shared.
  cuda::Address address() const { return address_; }

  std::size_t device_bytes() const { return device_bytes_; }
  int generation() const { return generation_; }

  // Allocates what `needed` requires; throws DeviceError, and keeps what it could allocate.
  void reserve(const Layout& needed);

  // Frees all memory.
  void release();

 private:
  void release_host();
  void release_device();

  Device& device_;
  HostBuffer host_;
  cuda::Address address_ = 0;
  std::size_t device_bytes_ = 0;
  int generation_ = 0;
};

}  // namespace rare_trt
