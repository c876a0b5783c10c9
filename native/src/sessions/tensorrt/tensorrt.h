// The TensorRT session: one route's engine on the GPU, checked at every step.
//
// An ignored failure of TensorRT or CUDA returns zeros, which are valid labels. So every status is
// checked, shapes are checked against the engine's profile before anything is queued, and the
// labels' memory is filled with a value that is not a label before each run.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "package/reading.h"
#include "sessions/machine.h"
#include "sessions/session.h"

namespace rare_trt {

using Warn = std::function<void(const std::string&)>;

// A GPU with the resources that the engines of a package share: stream, arena, lock.
class EngineHost;

// This machine, as far as engines are concerned. Loads CUDA's driver and TensorRT where installed.
Machine this_machine();

// The first GPU; throws BackendError where it cannot be used. Where engines would exceed
// `memory_limit` bytes (0: no limit) or the GPU's memory, those used longest ago are unloaded, and
// loaded again when they are needed.
std::shared_ptr<EngineHost> open_engine_host(std::uint64_t memory_limit, Warn warn);

// The engine `entry`; throws BackendError where it cannot be loaded. `package` and `entry` must
// outlive the session. Safe to use from several threads.
std::unique_ptr<Session> open_tensorrt_session(std::shared_ptr<EngineHost> host,
                                               const Package& package, const EngineEntry& entry);

}  // namespace rare_trt
