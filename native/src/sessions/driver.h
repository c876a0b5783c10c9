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

// The functions under their own names.
struct Driver {
  // libcuda.so.1, loaded once; throws BackendError where it is not installed or too old.
  static const Driver& loaded();

  Status (*cuInit)(unsigned flags);
  Status (*cuDriverGetVersion)(int* version);
  Status (*cuGetErrorName)(Status status, const char** name);
  Status (*cuDeviceGet)(Device* device, int ordinal);
  Status (*cuDeviceGetName)(char* name, int length, Device device);
  Status (*cuDeviceGetAttribute)(int* value, int attribute, Device device);
  Status (*cuDevicePrimaryCtxRetain)(Context* context, Device device);
  Status (*cuDevicePrimaryCtxRelease_v2)(Device device);
  Status (*cuCtxPushCurrent_v2)(Context context);
  Status (*cuCtxPopCurrent_v2)(Context* context);
  Status (*cuMemAlloc_v2)(Address* address, std::size_t size);
  Status (*cuMemFree_v2)(Address address);
  Status (*cuMemHostAlloc)(void** memory, std::size_t size, unsigned flags);
  Status (*cuMemHostGetDevicePointer_v2)(Address* address, void* memory, unsigned flags);
  Status (*cuMemFreeHost)(void* memory);
  Status (*cuMemcpyHtoDAsync_v2)(Address target, const void* source, std::size_t size, Stream on);
  Status (*cuMemcpyDtoHAsync_v2)(void* target, Address source, std::size_t size, Stream on);
  Status (*cuMemsetD8Async)(Address target, unsigned char value, std::size_t size, Stream on);
  Status (*cuStreamCreate)(Stream* stream, unsigned flags);
  Status (*cuStreamDestroy_v2)(Stream stream);
  Status (*cuStreamSynchronize)(Stream stream);
  Status (*cuEventCreate)(Event* event, unsigned flags);
  Status (*cuEventDestroy_v2)(Event event);
  Status (*cuEventRecord)(Event event, Stream on);
  Status (*cuEventSynchronize)(Event event);
  Status (*cuStreamBeginCapture_v2)(Stream stream, int mode);
  Status (*cuStreamEndCapture)(Stream stream, Graph* graph);
  Status (*cuGraphInstantiateWithFlags)(ExecutableGraph* ready, Graph graph,
                                        unsigned long long flags);
  Status (*cuGraphDestroy)(Graph graph);
  Status (*cuGraphLaunch)(ExecutableGraph graph, Stream on);
  Status (*cuGraphExecDestroy)(ExecutableGraph graph);
};

}  // namespace rare_trt::cuda
