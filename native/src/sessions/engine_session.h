// The TensorRT session: one route's engine on the GPU, its inputs checked before each run.
#pragma once

#include <memory>

#include "package/reading.h"
#include "sessions/engine.h"

namespace rare_trt {

// `package` and `entry` must outlive the session. Safe to use from several threads.
class EngineSession final : public Session, public EngineOwner {
 public:
  // Throws BackendError where the engine cannot be loaded.
  EngineSession(std::shared_ptr<EngineHost> host, const Package& package, const EngineEntry& entry);
  ~EngineSession() override;

  // Throws ShapeError, before anything is queued, where the engine was not built for the inputs'
  // shapes, and BackendError where the run failed; the next run then loads the engine again.
  std::vector<std::uint8_t> run(const Inputs& inputs) override;

  const std::string& identity() const override { return identity_; }

  void unload() override;
  std::string name() const override;

 private:
  // The engine, loaded if it is not.
  Engine& load();
  Sizes checked_sizes(const Inputs& inputs) const;

  std::shared_ptr<EngineHost> host_;
  const Package& package_;
  const EngineEntry& entry_;
  std::string identity_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace rare_trt
