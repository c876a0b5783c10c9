#include "sessions/arena.h"

#include <utility>

#include "constants.h"

namespace rare_trt {
namespace {

std::size_t align(std::size_t size) {
  constexpr std::size_t alignment = kArenaAlignment;
  return (size + alignment - 1) / alignment * alignment;
}

}  // namespace

std::size_t Layout::host_bytes() const { return align(labels.start + labels.size); }

std::size_t Layout::device_bytes() const { return align(scratch.start + scratch.size); }

Layout layout_of(const std::array<std::vector<std::int64_t>, kInputNames.size()>& shapes,
                 std::size_t label_bytes, std::size_t scratch_bytes) {
  Layout layout;
  std::size_t end = 0;
  for (std::size_t at = 0; at < shapes.size(); ++at) {
    std::size_t size = sizeof(float);
    for (const std::int64_t count : shapes[at]) size *= static_cast<std::size_t>(count);
    layout.inputs[at] = {end, size};
    end = align(end + size);
  }
  layout.labels = {end, label_bytes};
  layout.scratch = {align(end + label_bytes), scratch_bytes};
  return layout;
}

void Arena::reserve(const Layout& needed) {
  if (host_.size < needed.host_bytes()) {
    release_host();
    host_ = device_.allocate_host(needed.host_bytes());
  }
  if (device_bytes_ < needed.device_bytes()) {
    release_device();
    address_ = device_.allocate(needed.device_bytes());
    device_bytes_ = needed.device_bytes();
  }
}

void Arena::release() {
  try {
    release_device();
  } catch (const DeviceError&) {
    release_host();
    throw;
  }
  release_host();
}

void Arena::release_host() {
  ++generation_;
  const HostBuffer host = std::exchange(host_, {});
  if (host.bytes != nullptr) device_.free_host(host);
}

void Arena::release_device() {
  ++generation_;
  device_bytes_ = 0;
  const cuda::Address address = std::exchange(address_, 0);
  if (address != 0) device_.free(address);
}

}  // namespace rare_trt
