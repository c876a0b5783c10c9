// What this machine has to run engines on.
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

// Where engines are to run. `no_gpu` says in a few words why `gpu` is none; `libraries` holds the
// release of each backend's library, `no_library` why a backend has none.
struct Machine {
  std::string platform;
  std::optional<Gpu> gpu;
  std::string no_gpu;
  std::map<std::string, std::string> libraries;
  std::map<std::string, std::string> no_library;
};

// Operating system and processor in the manifest's words, as linux-x86_64.
std::string this_platform();

// The leading numbers of a version: 10.13 -> 10, 13.
std::vector<int> version_numbers(const std::string& version);

}  // namespace rare_trt
