#include "sessions/driver.h"

#include <dlfcn.h>

#include "errors.h"
#include "text.h"

namespace rare_trt::cuda {
namespace {

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw BackendError(text("no NVIDIA GPU can be used here (its driver has no ", name,
                            "): update the driver, or use OpenVINO"));
  }
}

Driver load() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw BackendError(
        "no NVIDIA GPU can be used here (its driver is not installed): install it, or use "
        "OpenVINO");
  }
  Driver driver{};
#define RARE_TRT_FIND(name) find(library, #name, driver.name)
  RARE_TRT_FIND(cuInit);
  RARE_TRT_FIND(cuDriverGetVersion);
  RARE_TRT_FIND(cuGetErrorName);
  RARE_TRT_FIND(cuDeviceGet);
  RARE_TRT_FIND(cuDeviceGetName);
  RARE_TRT_FIND(cuDeviceGetAttribute);
  RARE_TRT_FIND(cuDevicePrimaryCtxRetain);
  RARE_TRT_FIND(cuDevicePrimaryCtxRelease_v2);
  RARE_TRT_FIND(cuCtxPushCurrent_v2);
  RARE_TRT_FIND(cuCtxPopCurrent_v2);
  RARE_TRT_FIND(cuMemAlloc_v2);
  RARE_TRT_FIND(cuMemFree_v2);
  RARE_TRT_FIND(cuMemHostAlloc);
  RARE_TRT_FIND(cuMemHostGetDevicePointer_v2);
  RARE_TRT_FIND(cuMemFreeHost);
  RARE_TRT_FIND(cuMemcpyHtoDAsync_v2);
  RARE_TRT_FIND(cuMemcpyDtoHAsync_v2);
  RARE_TRT_FIND(cuMemsetD8Async);
  RARE_TRT_FIND(cuStreamCreate);
  RARE_TRT_FIND(cuStreamDestroy_v2);
  RARE_TRT_FIND(cuStreamSynchronize);
  RARE_TRT_FIND(cuEventCreate);
  RARE_TRT_FIND(cuEventDestroy_v2);
  RARE_TRT_FIND(cuEventRecord);
  RARE_TRT_FIND(cuEventSynchronize);
  RARE_TRT_FIND(cuStreamBeginCapture_v2);
  RARE_TRT_FIND(cuStreamEndCapture);
  RARE_TRT_FIND(cuGraphInstantiateWithFlags);
  RARE_TRT_FIND(cuGraphDestroy);
  RARE_TRT_FIND(cuGraphLaunch);
  RARE_TRT_FIND(cuGraphExecDestroy);
#undef RARE_TRT_FIND
  return driver;
}

}  // namespace

const Driver& Driver::loaded() {
  static const Driver driver = load();
  return driver;
}

}  // namespace rare_trt::cuda
