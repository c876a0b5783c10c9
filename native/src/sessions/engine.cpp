#include "sessions/engine.h"

#include <algorithm>

#include "constants.h"

namespace rare_trt {

std::vector<std::uint8_t> Engine::run(const Sizes& sizes, const Inputs& inputs) {
  return bucket(sizes).run(inputs, capturable_);
}

Bucket& Engine::bucket(const Sizes& sizes) {
  const auto found = std::find_if(buckets_.begin(), buckets_.end(),
                                  [&](const Bucket& bucket) { return bucket.sizes() == sizes; });
  if (found != buckets_.end()) {
    if (found->is_current()) {
      buckets_.splice(buckets_.end(), buckets_, found);
      return buckets_.back();
    }
    buckets_.erase(found);
  }
  while (buckets_.size() >= kMaxBuckets) buckets_.pop_front();
  Bucket& made = buckets_.emplace_back(host_, *engine_, sizes);
  try {
    reserve(made.layout());
    made.bind();
  } catch (const BackendError&) {
    buckets_.pop_back();
    throw;
  }
  return made;
}

void Engine::reserve(const Layout& needed) {
  const std::size_t held = host_.arena.device_bytes();
  const std::size_t wanted = needed.device_bytes();
  host_.make_room(owner_, wanted > held ? wanted - held : 0);
  while (true) {
    try {
      host_.arena.reserve(needed);
      return;
    } catch (const DeviceMemoryError&) {
      if (!host_.unload_oldest(owner_)) throw;
    }
  }
}

}  // namespace rare_trt
