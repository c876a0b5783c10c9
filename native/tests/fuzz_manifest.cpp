// A libFuzzer target: the manifest's reader accepts or refuses any bytes.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "errors.h"
#include "package/manifest_json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    rare_trt::manifest_from_json({reinterpret_cast<const char*>(data), size});
  } catch (const rare_trt::PackageError&) {
    return 0;
  }
  return 0;
}
