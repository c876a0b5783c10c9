// A loaded engine with its buckets, and the host that it shares a GPU with.
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

  // The GPU for one thread at a time, its context current.
  class Running {
   public:
    explicit Running(EngineHost& host) : lock_(host.mutex_), current_(host.device) {}

   private:
    std::lock_guard<std::recursive_mutex> lock_;
    Device::Current current_;
  };

  // The same without the context, for what must be done where the GPU cannot be reached, too.
  std::unique_lock<std::recursive_mutex> locked() { return std::unique_lock(mutex_); }

  // Waits for what a failed run has queued: it uses memory that is about to be freed.
  void settle() noexcept;

  // TensorRT, loaded once.
  EngineLibrary& library();

  // Unloads other engines until `size` more bytes for `session` keep the memory limit. To load an
  // engine the arena makes room, too; not for its own growth, which `size` then is.
  void make_room(const EngineSession& session, std::size_t size);

  // Notes that `session` holds an engine of `size` bytes and was used last, or that it holds none.
  void used(EngineSession& session, std::size_t size);
  void dropped(const EngineSession& session);

  // Unloads the engine used longest ago other than that of `but`; false if there is none.
  bool unload_oldest(const EngineSession& but);

  Device device;
  Arena arena;
  cuda::Stream stream = nullptr;
  cuda::Event finished = nullptr;
  const Warn warn;

 private:
  std::uint64_t held() const;

  // An engine that a run of another one may unload, in order of use.
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
// A graph holds addresses and the state of its context, so a context serves one set of shapes and
// one place of the arena, and a bucket is made anew for another.
class Bucket {
 public:
  Bucket(EngineHost& host, LoadedEngine& engine, const Sizes& sizes);
  ~Bucket();
  Bucket(const Bucket&) = delete;
  Bucket& operator=(const Bucket&) = delete;

  const Layout& layout() const { return layout_; }
  const Sizes& sizes() const { return sizes_; }

  // Whether the arena still lies where the context was told.
  bool is_current() const { return generation_ == host_.arena.generation(); }

  // Gives the context its addresses in the arena.
  void bind();

  // Copies in, runs, waits, copies out. `capturable` is cleared where no CUDA graph can be made.
  std::vector<std::uint8_t> run(const Inputs& inputs, bool& capturable);

 private:
  Layout planned();
  void capture(bool& capturable);
  void queue();

  EngineHost& host_;
  const Sizes sizes_;
  std::unique_ptr<EngineContext> context_;
  Layout layout_;
  int generation_ = -1;
  bool settled_ = false;
  cuda::ExecutableGraph graph_ = nullptr;
};

// A loaded engine with its buckets, the last few of them.
class Engine {
 public:
  Engine(EngineHost& host, const EngineSession& session, std::unique_ptr<LoadedEngine> engine,
         std::size_t size)
      : size(size), host_(host), session_(session), engine_(std::move(engine)) {}

  std::vector<std::uint8_t> run(const Sizes& sizes, const Inputs& inputs);

  const std::size_t size;

 private:
  // The bucket of `sizes`; made where it is new, or made before the arena moved.
  Bucket& bucket(const Sizes& sizes);
  void reserve(const Layout& needed);

  EngineHost& host_;
  const EngineSession& session_;
  std::unique_ptr<LoadedEngine> engine_;
  std::list<Bucket> buckets_;  // after the engine: contexts go first
  bool capturable_ = true;
};

}  // namespace rare_trt
