// A user's own folders, the same as the Python runtime's.
#pragma once

#include <filesystem>

namespace rare_trt {

// The folder in the environment variable `named`, or rare-trt in the folder of the variable `xdg`,
// or in `below` the home directory ($HOME, else that of the passwd entry). Empty where there is no
// home directory, as under an arbitrary user id in a container.
std::filesystem::path user_folder(const char* named, const char* xdg, const char* below);

// The folder for what a user makes and keeps.
std::filesystem::path home_folder();

// Whether `folder` is this user's, or with `or_system` root's, and nobody else may write to it.
bool is_private(const std::filesystem::path& folder, bool or_system);

}  // namespace rare_trt
