// The GPU that the engines of a package share: stream, arena, lock, memory limit.
#pragma once

#include <list>
#include <memory>
#include <mutex>

#include "sessions/arena.h"
#include "sessions/nvidia.h"

namespace rare_trt {

// A session that owns an engine in the GPU's memory.
class EngineOwner {
 public:
  virtual ~EngineOwner() = default;

  // Frees the engine's memory; the next run loads it again. The caller holds the host.
  virtual void unload() = 0;

  // Backend, arithmetic and route, for errors.
  virtual std::string name() const = 0;
};

// The first GPU. Where engines would exceed `memory_limit` bytes (0: no limit) or the GPU's memory,
// those used longest ago are unloaded, and loaded again for their next run.
class EngineHost {
 public:
  // Throws BackendError where the GPU cannot be used.
  EngineHost(std::uint64_t memory_limit, Warn warn);
  ~EngineHost();
  EngineHost(const EngineHost&) = delete;
  EngineHost& operator=(const EngineHost&) = delete;

  // Reserves the GPU for the calling thread and makes its context current.
  class Acquired {
   public:
    explicit Acquired(EngineHost& host) : lock_(host.mutex_), current_(host.device) {}

   private:
    std::lock_guard<std::recursive_mutex> lock_;
    Device::Current current_;
  };

  // The lock alone, for work that must be done even where the GPU cannot be reached.
  std::unique_lock<std::recursive_mutex> lock() { return std::unique_lock(mutex_); }

  // Waits for the work that a failed run has queued, because it uses memory to be freed.
  void synchronize() noexcept;

  // TensorRT, loaded once.
  EngineLibrary& library();

  // Unloads other engines until `size` more bytes for `owner` are within the memory limit. Where
  // `owner` is about to load its engine, the arena is released too if necessary. Throws
  // BackendError where the memory limit is too small.
  void make_room(const EngineOwner& owner, std::size_t size);

  // Records that `owner` has an engine of `size` bytes, as the most recently used one.
  void mark_used(EngineOwner& owner, std::size_t size);

  // Records that `owner` has no engine any more.
  void forget(const EngineOwner& owner);

  // Unloads the least recently used engine except that of `keep`; false without any.
  bool unload_oldest(const EngineOwner& keep);

  Device device;
  Arena arena;
  cuda::Stream stream = nullptr;
  cuda::Event finished = nullptr;
  const Warn warn;

 private:
  struct Loaded {
    EngineOwner* owner;
    std::size_t size;
  };

  // GPU memory that the loaded engines and the arena take.
  std::uint64_t device_bytes() const;

  std::recursive_mutex mutex_;
  std::unique_ptr<EngineLibrary> library_;
  std::uint64_t memory_limit_;
  std::list<Loaded> engines_;  // least recently used first
};

}  // namespace rare_trt
