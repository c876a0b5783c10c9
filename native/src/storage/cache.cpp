#include "storage/cache.h"

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>

#include "constants.h"
#include "storage/files.h"
#include "storage/home.h"
#include "text.h"

namespace rare_trt {
namespace {

namespace fs = std::filesystem;

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

Cache::Cache(std::function<void(const std::string&)> warn)
    : folder_(user_folder("RARE_TRT_CACHE", "XDG_CACHE_HOME", ".cache")), warn_(std::move(warn)) {}

std::optional<std::string> Cache::load(const Key& key) const {
  if (!is_private(folder_, false)) return std::nullopt;
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
  if (folder_.empty()) {
    warn_once("the cache has no folder, because this user has no home directory");
    return;
  }
  std::error_code fault;
  if (fs::create_directories(folder_, fault)) {
    fs::permissions(folder_, fs::perms::owner_all, fault);
  }
  try {
    if (fault) throw fs::filesystem_error("", folder_, fault);
    if (!is_private(folder_, false)) {
      warn_once(text(folder_.string(), ": others own or may write to the cache's folder"));
      return;
    }
    write_file(folder_ / file_name(key), digest(key, content) + std::string(content));
  } catch (const fs::filesystem_error& error) {
    // A full or read-only disk costs time at the next start only. Locked: another process is
    // writing the same file.
    if (error.code() != std::errc::operation_would_block) {
      warn_once(text(folder_.string(), ": the cache's folder cannot be written (",
                     error.code().message(), ")"));
    }
    return;
  }
  try {
    make_room();
  } catch (const fs::filesystem_error&) {
    // Another process may delete the same files.
    return;
  }
}

void Cache::warn_once(const std::string& what) const {
  if (warn_ && !warned_.exchange(true)) {
    warn_(text(what,
               ": nothing is kept between starts, which take longer; name a folder of your own in "
               "RARE_TRT_CACHE"));
  }
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
