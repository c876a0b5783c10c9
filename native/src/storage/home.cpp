#include "storage/home.h"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

namespace rare_trt {
namespace {

namespace fs = std::filesystem;

fs::path variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// $HOME, or the home in the passwd entry; empty where there is neither.
fs::path home_directory() {
  if (const fs::path named = variable("HOME"); named.is_absolute()) return named;
  std::vector<char> text(1 << 14);
  struct passwd entry {};
  struct passwd* found = nullptr;
  if (getpwuid_r(getuid(), &entry, text.data(), text.size(), &found) != 0 || found == nullptr) {
    return {};
  }
  return entry.pw_dir;
}

}  // namespace

fs::path user_folder(const char* named, const char* xdg, const char* below) {
  if (const fs::path folder = variable(named); !folder.empty()) return folder;
  if (const fs::path folder = variable(xdg); folder.is_absolute()) return folder / "rare-trt";
  const fs::path home = home_directory();
  return home.is_absolute() ? home / below / "rare-trt" : fs::path();
}

fs::path home_folder() { return user_folder("RARE_TRT_HOME", "XDG_DATA_HOME", ".local/share"); }

bool is_private(const fs::path& folder, bool or_system) {
  struct stat state {};
  return stat(folder.c_str(), &state) == 0 && S_ISDIR(state.st_mode) &&
         (state.st_uid == getuid() || (or_system && state.st_uid == 0)) &&
         (state.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

}  // namespace rare_trt
