// A TensorRT engine on the GPU with its buckets.
#pragma once

#include <list>
#include <memory>

#include "sessions/bucket.h"

namespace rare_trt {

// A loaded engine with the kMaxBuckets most recently used buckets.
class Engine {
 public:
  Engine(EngineHost& host, const EngineOwner& owner, std::unique_ptr<LoadedEngine> engine,
         std::size_t size)
      : size(size), host_(host), owner_(owner), engine_(std::move(engine)) {}

  std::vector<std::uint8_t> run(const Sizes& sizes, const Inputs& inputs);

  const std::size_t size;

 private:
  // The bucket of `sizes`, made anew where the arena has moved since its last run.
  Bucket& bucket(const Sizes& sizes);
  void reserve(const Layout& needed);

  EngineHost& host_;
  const EngineOwner& owner_;
  std::unique_ptr<LoadedEngine> engine_;
  std::list<Bucket> buckets_;  // declared after the engine, so that contexts are destroyed first
  bool capturable_ = true;
};

}  // namespace rare_trt
