#include "sessions/bucket.h"

#include <algorithm>
#include <cstring>

#include "constants.h"
#include "text.h"

namespace rare_trt {

Bucket::Bucket(EngineHost& host, LoadedEngine& engine, const Sizes& sizes)
    : host_(host), sizes_(sizes), context_(engine.create_context()) {
  if (!context_) {
    throw BackendError(text("TensorRT cannot create an execution context (",
                            host.library().logged_errors(),
                            "): free GPU memory, or build the engine on this machine"));
  }
  layout_ = set_shapes();
}

Bucket::~Bucket() {
  try {
    if (graph_ != nullptr) host_.device.destroy(graph_);
  } catch (const DeviceError&) {
    return;
  }
}

Layout Bucket::set_shapes() {
  for (std::size_t at = 0; at < sizes_.size(); ++at) {
    if (!context_->set_input_shape(kInputNames[at], sizes_[at])) {
      throw BackendError(text("the engine refused shape ", join(sizes_[at], " x "), " for ",
                              kInputNames[at], ": build it again with this rare-trt"));
    }
  }
  const std::string unknown = context_->unknown_inputs();
  if (!unknown.empty()) {
    throw BackendError(text("the engine cannot infer the shapes of ", unknown, ": build it again"));
  }
  const Dims expected = {1, sizes_[4][0], sizes_[5][0], sizes_[6][0]};
  const Dims labels = context_->labels_shape();
  if (labels != expected) {
    throw BackendError(text("the engine gives labels of shape ", join(labels, " x "), "; expected ",
                            join(expected, " x "), ": build it again"));
  }
  const std::size_t scratch = context_->scratch_bytes();
  if (scratch == 0) {
    throw BackendError("the engine does not report the memory it needs: build it again");
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
  // The first run also adapts the context to new shapes and addresses, which a graph must not
  // contain; and capturing does not pay for a shape that comes once.
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
    // The labels are the same; a fault that matters shows in the run that follows.
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

}  // namespace rare_trt
