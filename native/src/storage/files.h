// Files read with a bound, hashed, and written whole or not at all.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>

namespace rare_trt {

// SHA-256 of the parts in a row: 32 bytes, or 64 lower-case hexadecimal digits.
std::string sha256(std::initializer_list<std::string_view> parts);
std::string sha256_hex(std::string_view data);

// Bytes as lower-case hexadecimal digits.
std::string hex(std::string_view bytes);

// At most `limit` + 1 bytes of a file, which is no link. Throws std::filesystem::filesystem_error.
std::string read_file(const std::filesystem::path& path, std::int64_t limit);

// Writes under a temporary name beside `path` and renames: whatever happens, a loss of power
// included, the old file or the new one is there. Throws std::filesystem::filesystem_error, also
// where another process is writing `path`; no temporary file is then left.
void write_file(const std::filesystem::path& path, std::string_view data);

// A folder of its own, which goes with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace rare_trt
