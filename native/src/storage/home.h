// The folder for what a user makes and keeps, the same as the Python runtime's.
#pragma once

#include <filesystem>

namespace rare_trt {

// $RARE_TRT_HOME, or rare-trt in $XDG_DATA_HOME or in ~/.local/share; empty where this user has no
// home, as under an arbitrary user id in a container.
std::filesystem::path home_folder();

}  // namespace rare_trt
