// Replaces nvidia.cpp where TensorRT's headers were not found.
#include "sessions/nvidia.h"

namespace rare_trt {
namespace {

[[noreturn]] void refuse() {
  throw BackendError(
      "this library was built without TensorRT: build it where TensorRT's and CUDA's headers are");
}

}  // namespace

std::string tensorrt_version() { refuse(); }

std::unique_ptr<EngineLibrary> open_tensorrt() { refuse(); }

}  // namespace rare_trt
