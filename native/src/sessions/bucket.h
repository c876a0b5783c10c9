// One set of input shapes of an engine, run on the GPU and checked at every step.
//
// An ignored failure of TensorRT or CUDA leaves zeros, which are valid labels. So every status is
// checked, and the memory of the labels is filled with a value that is not a label before each run.
#pragma once

#include <memory>

#include "sessions/engine_host.h"

namespace rare_trt {

// The inputs' shapes in the graph's order.
using Sizes = std::array<Dims, kInputNames.size()>;

// One set of shapes: an execution context of its own and, from the second run on, a CUDA graph.
//
// A graph contains addresses and the state of its context. So a context serves one set of shapes,
// and the bucket is made anew when the arena moves.
class Bucket {
 public:
  // Throws BackendError where the engine refuses the shapes.
  Bucket(EngineHost& host, LoadedEngine& engine, const Sizes& sizes);
  ~Bucket();
  Bucket(const Bucket&) = delete;
  Bucket& operator=(const Bucket&) = delete;

  const Layout& layout() const { return layout_; }
  const Sizes& sizes() const { return sizes_; }

  // Whether the context has the arena's present addresses.
  bool is_current() const { return generation_ == host_.arena.generation(); }

  // Sets the context's addresses in the arena.
  void bind();

  // Copies in, runs, waits, copies out. Clears `capturable` where no CUDA graph can be made. Throws
  // BackendError where TensorRT fails, DeviceError where CUDA does.
  std::vector<std::uint8_t> run(const Inputs& inputs, bool& capturable);

 private:
  Layout set_shapes();
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

}  // namespace rare_trt
