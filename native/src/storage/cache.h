// The cache of a machine between starts: compiled models and passed checks.
//
// The cache only saves time: whatever is absent, damaged or cannot be written is computed again.
// Its folder and files are those of the Python runtime: $RARE_TRT_CACHE, or the user's cache
// folder. A user without a home directory has none.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace rare_trt {

// Bytes under a key. Each file starts with a SHA-256 over its key and content.
//
// A folder that another user owns or may write to is not used: a compiled model is executed.
class Cache {
 public:
  using Key = std::vector<std::string>;

  // `warn` receives one sentence, at most once, where the folder cannot be used.
  explicit Cache(std::function<void(const std::string&)> warn = {});

  // The content stored under `key`; none where it is absent, damaged or of another key.
  std::optional<std::string> load(const Key& key) const;

  // Stores `content` under `key`, where the folder can be used; deletes the oldest files.
  void store(const Key& key, std::string_view content) const;

 private:
  void make_room() const;

  void warn_once(const std::string& what) const;

  std::filesystem::path folder_;
  std::function<void(const std::string&)> warn_;
  mutable std::atomic<bool> warned_ = false;
};

}  // namespace rare_trt
