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
#define RARE_TRT_FIND(name, ...) find(library, #name, driver.name);
  RARE_TRT_CUDA_FUNCTIONS(RARE_TRT_FIND)
#undef RARE_TRT_FIND
  return driver;
}

}  // namespace

const Driver& Driver::loaded() {
  static const Driver driver = load();
  return driver;
}

}  // namespace rare_trt::cuda
