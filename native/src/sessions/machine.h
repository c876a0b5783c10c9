// The machine as far as engines are concerned: platform, GPU, libraries.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace rare_trt {

// A GPU as the driver describes it; `driver` names the driver's release and CUDA version.
struct Gpu {
  std::string name;
  std::string compute_capability;
  bool integrated;
  std::string driver;
};

// A machine that runs engines. `no_gpu` is the reason where there is no `gpu`; `libraries` has the
// release of each backend's library, `no_library` the reason where a backend has none.
struct Machine {
  std::string platform;
  std::optional<Gpu> gpu;
  std::string no_gpu;
  std::map<std::string, std::string> libraries;
  std::map<std::string, std::string> no_library;
};

// Operating system and processor as the manifest names them, such as linux-x86_64.
std::string this_platform();

// This machine. Loads CUDA's driver and TensorRT where they are installed.
Machine this_machine();

// The leading numbers of a version: 10.13 -> 10, 13.
std::vector<int> version_numbers(const std::string& version);

}  // namespace rare_trt
