#include "sessions/tensorrt/engine.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "constants.h"
#include "sessions/tensorrt/engine_session.h"
#include "text.h"

namespace rare_trt {
namespace {

std::string mib(std::uint64_t bytes) { return text((bytes + (1 << 19)) >> 20, " MiB"); }

}  // namespace

EngineHost::EngineHost(std::uint64_t memory_limit, Warn warn)
    : arena(device), warn(std::move(warn)), memory_limit_(memory_limit) {
  const Device::Current current(device);
  try {
    stream = device.stream();
    finished = device.event();
  } catch (const DeviceError& error) {
    if (stream != nullptr) device.destroy(stream);
    throw BackendError(text("the GPU cannot be used (", error.what(),
                            "): close other programs on it, or use OpenVINO"));
  }
}

EngineHost::~EngineHost() {
  // Sessions own the host, so none is left. A destructor cannot report an error.
  try {
    const Running running(*this);
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

void EngineHost::wait_for_queued() noexcept {
  try {
    device.synchronize(stream);
  } catch (...) {
    // The run's own error is reported.
    return;
  }
}

EngineLibrary& EngineHost::library() {
  if (!library_) library_ = open_tensorrt();
  return *library_;
}

void EngineHost::make_room(const EngineSession& session, std::size_t size) {
  while (memory_limit_ != 0 && device_bytes() + size > memory_limit_) {
    if (unload_oldest(session)) continue;
    const bool loading = std::none_of(engines_.begin(), engines_.end(), [&](const Loaded& loaded) {
      return loaded.session == &session;
    });
    if (loading && arena.device_bytes() != 0) {
      // It has the size of the largest scan so far; the next run allocates what it needs.
      arena.release();
      continue;
    }
    throw BackendError(text(session.name(), " needs ", mib(size), " on top of ",
                            mib(device_bytes()), "; the memory limit is ", mib(memory_limit_),
                            ": raise it"));
  }
}

void EngineHost::set_last_used(EngineSession& session, std::size_t size) {
  remove(session);
  engines_.push_back({&session, size});
}

void EngineHost::remove(const EngineSession& session) {
  engines_.remove_if([&](const Loaded& loaded) { return loaded.session == &session; });
}

bool EngineHost::unload_oldest(const EngineSession& except) {
  const auto oldest = std::find_if(engines_.begin(), engines_.end(),
                                   [&](const Loaded& loaded) { return loaded.session != &except; });
  if (oldest == engines_.end()) return false;
  oldest->session->unload();
  return true;
}

std::uint64_t EngineHost::device_bytes() const {
  std::uint64_t bytes = arena.device_bytes();
  for (const Loaded& loaded : engines_) bytes += loaded.size;
  return bytes;
}

Bucket::Bucket(EngineHost& host, LoadedEngine& engine, const Sizes& sizes)
    : host_(host), sizes_(sizes), context_(engine.create_context()) {
  if (!context_) {
    throw BackendError(text("TensorRT cannot create an execution context (",
                            host.library().logged_errors(),
                            "): free GPU memory, or build the engine on this machine"));
  }
  layout_ = plan_layout();
}

Bucket::~Bucket() {
  try {
    if (graph_ != nullptr) host_.device.destroy(graph_);
  } catch (const DeviceError&) {
    return;
  }
}

Layout Bucket::plan_layout() {
  for (std::size_t at = 0; at < sizes_.size(); ++at) {
    if (!context_->set_input_shape(kInputNames[at], sizes_[at])) {
      throw BackendError(text("the engine refused shape ", join(sizes_[at], " x "), " for ",
                              kInputNames[at], ": build it again with this rare-trt"));
    }
  }
  const std::string unknown = context_->unknown_inputs();
  if (!unknown.empty()) {
    throw BackendError(
        text("the engine does not know the shapes of ", unknown, ": build it again"));
  }
  const Dims expected = {1, sizes_[4][0], sizes_[5][0], sizes_[6][0]};
  const Dims labels = context_->labels_shape();
  if (labels != expected) {
    throw BackendError(text("the engine returns labels of shape ", join(labels, " x "),
                            "; expected ", join(expected, " x "), ": build it again"));
  }
  const std::size_t scratch = context_->scratch_bytes();
  if (scratch == 0) {
    throw BackendError("the engine does not know how much memory it needs: build it again");
  }
  const auto count = static_cast<std::size_t>(expected[1] * expected[2] * expected[3]);
  return layout_of(sizes_, count, scratch);
}

void Bucket::bind() {
  const cuda::Address start = host_.arena.io_address();
  const auto set = [&](const char* name, std::size_t offset) {
    if (!context_->set_address(name, start + offset)) {
      throw BackendError(text("the engine refused an address for ", name, ": build it again"));
    }
  };
  for (std::size_t at = 0; at < sizes_.size(); ++at) {
    set(kInputNames[at], layout_.inputs[at].start);
  }
  set(kLabelsName, layout_.labels.start);
  context_->set_scratch(host_.arena.address() + layout_.scratch.start, layout_.scratch.size);
  generation_ = host_.arena.generation();
}

std::vector<std::uint8_t> Bucket::run(const Inputs& inputs, bool& capturable) {
  std::uint8_t* memory = host_.arena.host().bytes;
  for (std::size_t at = 0; at < inputs.size(); ++at) {
    const Span& span = layout_.inputs[at];
    std::memcpy(memory + span.start, inputs[at].values.data(), span.size);
  }
  std::uint8_t* labels = memory + layout_.labels.start;
  std::fill_n(labels, layout_.labels.size, static_cast<std::uint8_t>(kUnwritten));
  // The context adapts to new shapes and addresses in its first run, which a graph must not
  // contain; and a graph does not pay off for a shape that is run once.
  if (graph_ == nullptr && adapted_ && capturable) capture(capturable);
  if (graph_ != nullptr) {
    host_.device.launch(graph_, host_.stream);
  } else {
    queue();
  }
  host_.device.record(host_.finished, host_.stream);
  host_.device.wait(host_.finished);
  adapted_ = true;
  return {labels, labels + layout_.labels.size};
}

void Bucket::capture(bool& capturable) {
  try {
    graph_ = host_.device.capture([this] { queue(); }, host_.stream);
  } catch (const BackendError& error) {
    // Labels are the same; an error that matters is reported by the run that follows.
    capturable = false;
    host_.warn(text("no CUDA graph could be made (", error.what(),
                    "): runs are queued one by one, which takes longer"));
  }
}

void Bucket::queue() {
  Device& device = host_.device;
  const Arena& arena = host_.arena;
  const Span& labels = layout_.labels;
  std::uint8_t* memory = arena.host().bytes;
  if (!arena.shared()) {
    device.copy_in(arena.address(), memory, layout_.input_bytes(), host_.stream);
    device.fill(arena.address() + labels.start, kUnwritten, labels.size, host_.stream);
  }
  if (!context_->enqueue(host_.stream)) {
    throw BackendError(
        "TensorRT could not queue the run: build the engine on this machine, or use OpenVINO");
  }
  if (!arena.shared()) {
    device.copy_out(memory + labels.start, arena.address() + labels.start, labels.size,
                    host_.stream);
  }
}

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
  host_.make_room(session_, wanted > held ? wanted - held : 0);
  while (true) {
    try {
      host_.arena.reserve(needed);
      return;
    } catch (const DeviceMemoryError&) {
      if (!host_.unload_oldest(session_)) throw;
    }
  }
}

}  // namespace rare_trt
