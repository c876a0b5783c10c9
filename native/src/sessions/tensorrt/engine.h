// A loaded engine with its buckets, and the host through which engines share a GPU.
#pragma once

#include <list>
#include <memory>
#include <mutex>

#include "package/manifest.h"
#include "sessions/tensorrt/arena.h"
#include "sessions/tensorrt/library.h"
#include "sessions/tensorrt/tensorrt.h"

namespace rare_trt {

// The inputs' shapes in the graph's order.
using Sizes = std::array<Dims, kInputNames.size()>;

class EngineSession;

class EngineHost {
 public:
  EngineHost(std::uint64_t memory_limit, Warn warn);
  ~EngineHost();
  EngineHost(const EngineHost&) = delete;
  EngineHost& operator=(const EngineHost&) = delete;

  // Holds the GPU for the calling thread, its context current.
  class Running {
   public:
    explicit Running(EngineHost& host) : lock_(host.mutex_), current_(host.device) {}

   private:
    std::lock_guard<std::recursive_mutex> lock_;
    Device::Current current_;
  };

  // The lock alone, for work that must be done even where the GPU cannot be reached.
  std::unique_lock<std::recursive_mutex> locked() { return std::unique_lock(mutex_); }

  // Waits for the work that a failed run has queued, which uses memory that is about to be freed.
  void wait_for_queued() noexcept;

  // TensorRT, loaded once.
  EngineLibrary& library();

  // Unloads other engines until `size` more bytes for `session` stay within the memory limit. To
  // load an engine the arena is released, too, but not for its own growth.
  void make_room(const EngineSession& session, std::size_t size);

  // Records that `session` has an engine of `size` bytes and was used last, or that it has none.
  void set_last_used(EngineSession& session, std::size_t size);
  void remove(const EngineSession& session);

  // Unloads the engine used longest ago, other than that of `except`; false if there is none.
  bool unload_oldest(const EngineSession& except);

  Device device;
  Arena arena;
  cuda::Stream stream = nullptr;
  cuda::Event finished = nullptr;
  const Warn warn;

 private:
  std::uint64_t device_bytes() const;

  // A loaded engine, which another one may unload. In order of use.
  struct Loaded {
    EngineSession* session;
    std::size_t size;
  };

  std::recursive_mutex mutex_;
  std::unique_ptr<EngineLibrary> library_;
  std::uint64_t memory_limit_;
  std::list<Loaded> engines_;
};

// One set of shapes: an execution context of its own and, from the second run on, a CUDA graph.
//
// A graph contains addresses and the state of its context, so a context serves one set of shapes
// and one address of the arena; for others a new bucket is made.
class Bucket {
 public:
  Bucket(EngineHost& host, LoadedEngine& engine, const Sizes& sizes);
  ~Bucket();
  Bucket(const Bucket&) = delete;
  Bucket& operator=(const Bucket&) = delete;

  const Layout& layout() const { return layout_; }
  const Sizes& sizes() const { return sizes_; }

  // Whether the arena still has the address that the context was given.
  bool is_current() const { return generation_ == host_.arena.generation(); }

  // Sets the context's addresses in the arena.
  void bind();

  // Copies in, runs, waits, copies out. Clears `capturable` where no CUDA graph can be made.
  std::vector<std::uint8_t> run(const Inputs& inputs, bool& capturable);

 private:
  Layout plan_layout();
  void capture(bool& capturable);
  void queue();

  EngineHost& host_;
  const Sizes sizes_;
  std::unique_ptr<EngineContext> context_;
  Layout layout_;
  int generation_ = -1;
  bool adapted_ = false;
  cuda::ExecutableGraph graph_ = nullptr;
};

// A loaded engine with its buckets, the last kMaxBuckets of them.
class Engine {
 public:
  Engine(EngineHost& host, const EngineSession& session, std::unique_ptr<LoadedEngine> engine,
         std::size_t size)
      : size(size), host_(host), session_(session), engine_(std::move(engine)) {}

  std::vector<std::uint8_t> run(const Sizes& sizes, const Inputs& inputs);

  const std::size_t size;

 private:
  // The bucket of `sizes`, made where there is none at the arena's present address.
  Bucket& bucket(const Sizes& sizes);
  void reserve(const Layout& needed);

  EngineHost& host_;
  const EngineSession& session_;
  std::unique_ptr<LoadedEngine> engine_;
  std::list<Bucket> buckets_;  // declared after the engine, so that contexts are destroyed first
  bool capturable_ = true;
};

}  // namespace rare_trt
