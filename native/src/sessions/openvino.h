// The OpenVINO session: any x86 or Arm CPU.
#pragma once

#include <memory>

#include "package/reading.h"
#include "sessions/session.h"
#include "storage/cache.h"

namespace rare_trt {

// One route's graph compiled for this CPU, for any shape; `bf16`: its float parts in bf16. Throws
// BackendError where OpenVINO fails.
//
// The compiled model is stored in the cache under the hashes of graph and weights, OpenVINO's
// version and the CPU, so that a second start neither parses nor compiles.
std::unique_ptr<Session> open_openvino_session(const Package& package, const GraphEntry& entry,
                                               const Cache& cache, bool bf16);

// The precisions that this CPU computes in, such as BF16 and INT8. Throws BackendError where
// OpenVINO fails.
std::vector<std::string> openvino_capabilities();

}  // namespace rare_trt
