#include "sessions/engine_session.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "constants.h"
#include "text.h"

namespace rare_trt {

EngineSession::EngineSession(std::shared_ptr<EngineHost> host, const Package& package,
                             const EngineEntry& entry)
    : Session(entry.backend, entry.precision, kEngineGoldenRuns),
      host_(std::move(host)),
      package_(package),
      entry_(entry) {
  const Gpu& gpu = host_->device.gpu();
  const auto& sha256 = package.manifest.files.at(entry.file).sha256;
  identity_ = entry.backend + " " + tensorrt_version() + " " + sha256 + " " + gpu.name + " " +
              gpu.compute_capability + " " + gpu.driver;
  const EngineHost::Acquired acquired(*host_);
  load();
}

EngineSession::~EngineSession() {
  const auto lock = host_->lock();
  std::optional<Device::Current> current;
  try {
    current.emplace(host_->device);
  } catch (const BackendError&) {
    // The GPU cannot be reached and its memory is lost, but no run may use this session any more.
  }
  unload();
}

std::vector<std::uint8_t> EngineSession::run(const Inputs& inputs) {
  const Sizes sizes = checked_sizes(inputs);
  const EngineHost::Acquired acquired(*host_);
  std::vector<std::uint8_t> labels;
  try {
    labels = load().run(sizes, inputs);
  } catch (const DeviceError& error) {
    host_->synchronize();
    unload();
    throw BackendError(
        text(name(), " failed (", error.what(),
             "): free GPU memory or restart the program; `rare-trt doctor` lists the "
             "usable backends"));
  } catch (const BackendError&) {
    host_->synchronize();
    unload();
    throw;
  }
  const std::size_t known = package_.manifest.model.labels.size();
  const auto largest = std::max_element(labels.begin(), labels.end());
  if (largest != labels.end() && *largest >= known) {
    const int highest = *largest;
    unload();
    throw BackendError(text(name(), " returned label ", highest, "; expected 0 to ", known - 1,
                            ": run `rare-trt verify`, then build the engine again"));
  }
  return labels;
}

void EngineSession::unload() {
  host_->forget(*this);
  engine_.reset();
}

std::string EngineSession::name() const {
  return text(backend, " ", arithmetic, " on route ", entry_.route);
}

Engine& EngineSession::load() {
  if (!engine_) {
    const std::string blob = package_.read(entry_.file);
    host_->make_room(*this, blob.size());
    std::unique_ptr<LoadedEngine> engine;
    while (!engine) {
      try {
        engine = host_->library().load(blob, entry_);
      } catch (const EngineLoadError&) {
        // Perhaps the GPU is out of memory: TensorRT does not report the reason.
        if (!host_->unload_oldest(*this)) throw;
      }
    }
    engine_ = std::make_unique<Engine>(*host_, *this, std::move(engine), blob.size());
  }
  host_->mark_used(*this, engine_->size);
  return *engine_;
}

Sizes EngineSession::checked_sizes(const Inputs& inputs) const {
  Sizes sizes;
  for (std::size_t at = 0; at < inputs.size(); ++at) {
    const auto& [low, typical, high] = entry_.profile.at(kInputNames[at]);
    const Dims& shape = inputs[at].shape;
    bool fits = shape.size() == low.size() && shape.size() == high.size();
    for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
      fits = low[axis] <= shape[axis] && shape[axis] <= high[axis];
    }
    if (!fits) {
      throw ShapeError(text("the scan needs ", kInputNames[at], " of shape ", join(shape, " x "),
                            "; the ", backend, " engine of route ", entry_.route, " takes ",
                            join(low, " x "), " to ", join(high, " x "),
                            ": build it again, or use OpenVINO"));
    }
    sizes[at] = shape;
  }
  return sizes;
}

}  // namespace rare_trt
