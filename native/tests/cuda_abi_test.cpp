// The declarations of driver.h match cuda.h. Compiled where cuda.h is found; there is nothing to
// run.
#include <cuda.h>

#include <type_traits>

#include "sessions/driver.h"

namespace {

// The same number of arguments, each of the same size and a pointer in both or in none.
template <class Own, class Theirs>
struct Alike : std::false_type {};

template <class... Own, class... Theirs>
struct Alike<int (*)(Own...), CUresult (*)(Theirs...)>
    : std::bool_constant<((sizeof(Own) == sizeof(Theirs)) && ...) &&
                         ((std::is_pointer_v<Own> == std::is_pointer_v<Theirs>)&&...)> {};

#define ALIKE(name, ...) \
  static_assert(Alike<decltype(rare_trt::cuda::Driver::name), decltype(&::name)>::value, #name);
RARE_TRT_CUDA_FUNCTIONS(ALIKE)

static_assert(CUDA_SUCCESS == rare_trt::cuda::kSuccess);
static_assert(CUDA_ERROR_OUT_OF_MEMORY == rare_trt::cuda::kOutOfMemory);
static_assert(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT == rare_trt::cuda::kMultiprocessors);
static_assert(CU_DEVICE_ATTRIBUTE_INTEGRATED == rare_trt::cuda::kIntegrated);
static_assert(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == rare_trt::cuda::kCapabilityMajor);
static_assert(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == rare_trt::cuda::kCapabilityMinor);
static_assert(CU_MEMHOSTALLOC_DEVICEMAP == rare_trt::cuda::kDeviceMap);
static_assert(CU_STREAM_NON_BLOCKING == rare_trt::cuda::kNonBlocking);
static_assert(CU_EVENT_DEFAULT == rare_trt::cuda::kDefaultEvent);
static_assert(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == rare_trt::cuda::kThreadLocal);
static_assert(std::is_same_v<CUstream, rare_trt::cuda::Stream>);

}  // namespace
