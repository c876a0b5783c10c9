#include "storage/cache.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <tuple>

#include "constants.h"
#include "storage/files.h"

namespace rare_trt {
namespace {

namespace fs = std::filesystem;

fs::path cache_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return fs::path(value == nullptr ? "" : value);
  };
  if (const fs::path named = variable("RARE_TRT_CACHE"); !named.empty()) return named;
  const fs::path caches = variable("XDG_CACHE_HOME");
  const fs::path home = variable("HOME");
  if (!caches.empty()) return caches / "rare-trt";
  return home.empty() ? fs::path() : home / ".cache" / "rare-trt";
}

std::string digest(const Cache::Key& key, std::string_view content) {
  std::string named;
  for (const std::string& part : key) named += part + '\0';
  return sha256({named + '\0', content});
}

std::string file_name(const Cache::Key& key) { return hex(digest(key, "")) + ".bin"; }

// Only files with such names are the cache's own: the folder may contain others.
bool is_own(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.size() == 2 * kDigestBytes + 4 && name.substr(2 * kDigestBytes) == ".bin" &&
         name.find_first_not_of("0123456789abcdef") == 2 * kDigestBytes;
}

}  // namespace

Cache::Cache() : folder_(cache_folder()) {}

std::optional<std::string> Cache::load(const Key& key) const {
  if (!is_private()) return std::nullopt;
  const fs::path path = folder_ / file_name(key);
  try {
    std::string data = read_file(path, kMaxCacheBytes);
    if (data.size() < kDigestBytes) return std::nullopt;
    const std::string_view content = std::string_view(data).substr(kDigestBytes);
    if (digest(key, content) != data.substr(0, kDigestBytes)) return std::nullopt;
    std::error_code ignored;
    fs::last_write_time(path, fs::file_time_type::clock::now(), ignored);
    data.erase(0, kDigestBytes);
    return data;
  } catch (const fs::filesystem_error&) {
    return std::nullopt;
  }
}

void Cache::store(const Key& key, std::string_view content) const {
  std::error_code exists;
  if (folder_.empty()) return;
  if (fs::create_directories(folder_, exists)) {
    fs::permissions(folder_, fs::perms::owner_all, exists);
  }
  if (!is_private()) return;
  try {
    write_file(folder_ / file_name(key), digest(key, content) + std::string(content));
    make_room();
  } catch (const fs::filesystem_error&) {
    // A full or read-only disk costs time at the next start only.
    return;
  }
}

bool Cache::is_private() const {
  struct stat state {};
  return !folder_.empty() && stat(folder_.c_str(), &state) == 0 && S_ISDIR(state.st_mode) &&
         state.st_uid == getuid() && (state.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

void Cache::make_room() const {
  std::vector<std::tuple<fs::file_time_type, std::uintmax_t, fs::path>> files;
  std::uintmax_t total = 0;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (!is_own(entry.path())) continue;
    files.emplace_back(entry.last_write_time(), entry.file_size(), entry.path());
    total += entry.file_size();
  }
  std::sort(files.begin(), files.end());
  for (std::size_t at = 0; at + 1 < files.size() && total > kMaxCacheBytes; ++at) {
    total -= std::get<std::uintmax_t>(files[at]);
    fs::remove(std::get<fs::path>(files[at]));
  }
}

}  // namespace rare_trt
