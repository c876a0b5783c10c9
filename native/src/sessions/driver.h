// The part of CUDA's driver API that a session needs, loaded at run time.
//
// So the library runs without a GPU, and is built and tested without CUDA's headers. The
// declarations are the driver's stable binary interface; tests/cuda_abi_test.cpp compares them with
// cuda.h where that is found.
#pragma once

#include <cstddef>

// CUDA's own tag, with which TensorRT declares streams.
struct CUstream_st;

namespace rare_trt::cuda {

using Status = int;
using Device = int;
using Address = unsigned long long;
using Context = struct ContextTag*;
using Stream = CUstream_st*;
using Event = struct EventTag*;
using Graph = struct GraphTag*;
using ExecutableGraph = struct ExecutableGraphTag*;

constexpr Status kSuccess = 0;
constexpr Status kOutOfMemory = 2;
constexpr int kMultiprocessors = 16;
constexpr int kIntegrated = 18;
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;
constexpr unsigned kDeviceMap = 2;
constexpr unsigned kNonBlocking = 1;
constexpr unsigned kDefaultEvent = 0;
constexpr int kThreadLocal = 1;

// The functions that sessions call, with their arguments.
#define RARE_TRT_CUDA_FUNCTIONS(X)                                                              \
  X(cuInit, unsigned flags)                                                                     \
  X(cuDriverGetVersion, int* version)                                                           \
  X(cuGetErrorName, Status status, const char** name)                                           \
  X(cuDeviceGet, Device* device, int ordinal)                                                   \
  X(cuDeviceGetName, char* name, int length, Device device)                                     \
  X(cuDeviceGetAttribute, int* value, int attribute, Device device)                             \
  X(cuDevicePrimaryCtxRetain, Context* context, Device device)                                  \
  X(cuDevicePrimaryCtxRelease_v2, Device device)                                                \
  X(cuCtxPushCurrent_v2, Context context)                                                       \
  X(cuCtxPopCurrent_v2, Context* context)                                                       \
  X(cuMemAlloc_v2, Address* address, std::size_t size)                                          \
  X(cuMemFree_v2, Address address)                                                              \
  X(cuMemHostAlloc, void** memory, std::size_t size, unsigned flags)                            \
  X(cuMemHostGetDevicePointer_v2, Address* address, void* memory, unsigned flags)               \
  X(cuMemFreeHost, void* memory)                                                                \
  X(cuMemcpyHtoDAsync_v2, Address target, const void* source, std::size_t size, Stream on)      \
  X(cuMemcpyDtoHAsync_v2, void* target, Address source, std::size_t size, Stream on)            \
  X(cuMemsetD8Async, Address target, unsigned char value, std::size_t size, Stream on)          \
  X(cuStreamCreate, Stream* stream, unsigned flags)                                             \
  X(cuStreamDestroy_v2, Stream stream)                                                          \
  X(cuStreamSynchronize, Stream stream)                                                         \
  X(cuEventCreate, Event* event, unsigned flags)                                                \
  X(cuEventDestroy_v2, Event event)                                                             \
  X(cuEventRecord, Event event, Stream on)                                                      \
  X(cuEventSynchronize, Event event)                                                            \
  X(cuStreamBeginCapture_v2, Stream stream, int mode)                                           \
  X(cuStreamEndCapture, Stream stream, Graph* graph)                                            \
  X(cuGraphInstantiateWithFlags, ExecutableGraph* ready, Graph graph, unsigned long long flags) \
  X(cuGraphDestroy, Graph graph)                                                                \
  X(cuGraphLaunch, ExecutableGraph graph, Stream on)                                            \
  X(cuGraphExecDestroy, ExecutableGraph graph)

struct Driver {
  // libcuda.so.1, loaded once; throws BackendError where it is not installed or too old.
  static const Driver& loaded();

#define RARE_TRT_DECLARE(name, ...) Status (*name)(__VA_ARGS__);
  RARE_TRT_CUDA_FUNCTIONS(RARE_TRT_DECLARE)
#undef RARE_TRT_DECLARE
};

}  // namespace rare_trt::cuda
