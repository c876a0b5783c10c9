#include "sessions/machine.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cctype>
#include <sstream>

#include "sessions/device.h"
#include "sessions/nvidia.h"

namespace rare_trt {
namespace {

std::string lower(std::string value) {
  std::transform(value.begin(), value.end(), value.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
  return value;
}

}  // namespace

std::string this_platform() {
  utsname names{};
  uname(&names);
  const std::string machine = lower(names.machine);
  return lower(names.sysname) + "-" + (machine == "arm64" ? "aarch64" : machine);
}

std::vector<int> version_numbers(const std::string& version) {
  std::vector<int> numbers;
  std::istringstream parts(version);
  int number = 0;
  while (parts >> number) {
    numbers.push_back(number);
    if (parts.get() != '.') break;
  }
  return numbers;
}

Machine this_machine() {
  Machine machine;
  machine.platform = this_platform();
  try {
    machine.gpu = Device().gpu();
  } catch (const BackendError& error) {
    machine.no_gpu = error.what();
  }
  try {
    machine.libraries["tensorrt"] = tensorrt_version();
  } catch (const BackendError& error) {
    machine.no_library["tensorrt"] = error.what();
  }
  machine.no_library["tensorrt-rtx"] =
      "this library does not run TensorRT for RTX; the Python runtime does";
  return machine;
}

}  // namespace rare_trt
