// The OpenVINO session: any x86 or Arm CPU.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "package/reading.h"
#include "sessions/session.h"
#include "storage/cache.h"

namespace rare_trt {

// One route's graph compiled for this CPU, for any shape; `bf16`: its float parts in bf16. Throws
// BackendError where OpenVINO fails.
//
// The compiled model is stored in the cache under the hashes of graph and weights, OpenVINO's
// version and the CPU, so that a second start neither parses nor compiles. `threads`: the number of
// threads as `thread_count` returns it; a compiled model serves any number.
std::unique_ptr<Session> open_openvino_session(const Package& package, const GraphEntry& entry,
                                               const Cache& cache, bool bf16,
                                               std::optional<int> threads);

// The number of threads that OpenVINO is limited to; none where it chooses.
//
// That is the environment variable RARE_TRT_THREADS, else what the CPU quota of a container allows,
// where that is less than the CPUs that this process may run on. OpenVINO itself respects those
// (taskset) and not the quota. Throws BackendError for anything but a whole number from 1 up.
std::optional<int> thread_count();

// How many CPUs' time this process's control groups allow it, infinity without a limit. Groups of
// version 1 and 2 count, the parents among them; `root` is the file system's.
double cpu_quota(const std::filesystem::path& root = "/");

// The id of this process. Throws BackendError where it was forked from the process `first`, which
// had loaded OpenVINO or an engine already: a fork has none of the threads that they compute with,
// and locks that those held stay locked. `first` is 0 where there was none.
pid_t this_process(pid_t first);

// The precisions that this CPU computes in, such as BF16 and INT8. Throws BackendError where
// OpenVINO fails.
std::vector<std::string> openvino_capabilities();

}  // namespace rare_trt
