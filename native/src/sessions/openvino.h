// The OpenVINO session: any x86 or Arm CPU.
#pragma once

#include <memory>

#include "package/reading.h"
#include "sessions/session.h"
#include "storage/cache.h"

namespace rare_trt {

// One route's graph compiled for this CPU, for any shape; `bf16`: its float parts in bf16.
//
// The compiled model is kept in the cache under the hashes of graph and weights, OpenVINO's version
// and the CPU, so that a second start neither parses nor compiles.
std::unique_ptr<Session> openvino_session(const Package& package, const GraphEntry& entry,
                                          const Cache& cache, bool bf16);

// What this CPU can compute in, as BF16 or INT8.
std::vector<std::string> openvino_capabilities();

}  // namespace rare_trt
