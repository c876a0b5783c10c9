// One route's engine as a session.
#pragma once

#include <memory>

#include "sessions/tensorrt/engine.h"

namespace rare_trt {

class EngineSession final : public Session {
 public:
  EngineSession(std::shared_ptr<EngineHost> host, const Package& package, const EngineEntry& entry);
  ~EngineSession() override;

  // Throws ShapeError, before anything is queued, where the engine was not built for the inputs'
  // shapes, and BackendError where the run failed; the next run then loads the engine again.
  std::vector<std::uint8_t> run(const Inputs& inputs) override;

  const std::string& identity() const override { return identity_; }

  // Frees the engine's memory; the next run loads it again. Needs EngineHost::Running.
  void unload();

  // Backend, arithmetic and route, for errors.
  std::string name() const;

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
