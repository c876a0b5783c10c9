#include "sessions/engine_host.h"

#include <algorithm>
#include <utility>

#include "text.h"

namespace rare_trt {
namespace {

std::string mib(std::uint64_t bytes) { return text((bytes + (1 << 19)) >> 20, " MiB"); }

}  // namespace

EngineHost::EngineHost(std::uint64_t memory_limit, Warn warn)
    : arena(device), warn(std::move(warn)), memory_limit_(memory_limit) {
  const Device::Current current(device);
  try {
    stream = device.create_stream();
    finished = device.create_event();
  } catch (const DeviceError& error) {
    if (stream != nullptr) device.destroy(stream);
    throw BackendError(text("the GPU cannot be used (", error.what(),
                            "): close other programs on it, or use OpenVINO"));
  }
}

EngineHost::~EngineHost() {
  // Sessions own the host, so none is left. A destructor cannot report an error.
  try {
    const Acquired acquired(*this);
    library_.reset();
    const auto quietly = [](const auto& release) {
      try {
        release();
      } catch (const DeviceError&) {
        return;
      }
    };
    quietly([&] { arena.release(); });
    quietly([&] { device.destroy(finished); });
    quietly([&] { device.destroy(stream); });
  } catch (const BackendError&) {
    return;
  }
}

void EngineHost::synchronize() noexcept {
  try {
    device.synchronize(stream);
  } catch (...) {
    // The error of the run is the one to report.
    return;
  }
}

EngineLibrary& EngineHost::library() {
  if (!library_) library_ = open_tensorrt();
  return *library_;
}

void EngineHost::make_room(const EngineOwner& owner, std::size_t size) {
  while (memory_limit_ != 0 && device_bytes() + size > memory_limit_) {
    if (unload_oldest(owner)) continue;
    const bool loading = std::none_of(engines_.begin(), engines_.end(),
                                      [&](const Loaded& loaded) { return loaded.owner == &owner; });
    if (!loading || arena.device_bytes() == 0) {
      throw BackendError(text(owner.name(), " needs ", mib(size), " of GPU memory beside the ",
                              mib(device_bytes()), " in use; the memory limit is ",
                              mib(memory_limit_), ": raise it"));
    }
    // It has the size of the largest scan so far; the next run reserves its own size.
    arena.release();
  }
}

void EngineHost::mark_used(EngineOwner& owner, std::size_t size) {
  forget(owner);
  engines_.push_back({&owner, size});
}

void EngineHost::forget(const EngineOwner& owner) {
  engines_.remove_if([&](const Loaded& loaded) { return loaded.owner == &owner; });
}

bool EngineHost::unload_oldest(const EngineOwner& keep) {
  const auto oldest = std::find_if(engines_.begin(), engines_.end(),
                                   [&](const Loaded& loaded) { return loaded.owner != &keep; });
  if (oldest == engines_.end()) return false;
  oldest->owner->unload();
  return true;
}

std::uint64_t EngineHost::device_bytes() const {
  std::uint64_t bytes = arena.device_bytes();
  for (const Loaded& loaded : engines_) bytes += loaded.size;
  return bytes;
}

}  // namespace rare_trt
