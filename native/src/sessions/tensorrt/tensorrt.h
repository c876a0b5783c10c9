// The TensorRT session: one route's engine on the GPU, checked at every step.
//
// An ignored failure of TensorRT or CUDA gives zeros, which are labels like any others. So every
// status is looked at, shapes are held to the engine's profile before anything is queued, and the
// labels' memory is filled with a value that is no label before each run.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "package/reading.h"
#include "sessions/machine.h"
#include "sessions/session.h"

namespace rare_trt {

using Warn = std::function<void(const std::string&)>;

// A GPU with what the engines of a package share: stream, arena, one run at a time.
class EngineHost;

// This machine, as far as engines are concerned. Loads CUDA's driver and TensorRT where they are.
Machine this_machine();

// The first GPU; throws BackendError where it cannot be used. Engines beyond `memory_limit` bytes
// (0: no limit), or beyond what the GPU has, make room for the one that is needed: those used
// longest ago are unloaded, and loaded again when their turn comes.
std::shared_ptr<EngineHost> open_engine_host(std::uint64_t memory_limit, Warn warn);

// The engine `entry`; throws BackendError where it cannot be loaded. `package` and `entry` outlive
// the session. Safe to use from several threads.
std::unique_ptr<Session> tensorrt_session(std::shared_ptr<EngineHost> host, const Package& package,
                                          const EngineEntry& entry);

}  // namespace rare_trt
