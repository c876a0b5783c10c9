// Bounded reads, hashes, and atomic, durable writes.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>

namespace rare_trt {

// SHA-256 of the concatenated parts: 32 bytes, or 64 lower-case hexadecimal digits.
std::string sha256(std::initializer_list<std::string_view> parts);
std::string sha256_hex(std::string_view data);

// Bytes as lower-case hexadecimal digits.
std::string hex(std::string_view bytes);

// At most `limit` + 1 bytes of a regular file, not of a link. Throws
// std::filesystem::filesystem_error.
std::string read_file(const std::filesystem::path& path, std::int64_t limit);

// Writes under a temporary name beside `path`, syncs and renames: after any failure, a loss of
// power included, either the old file or the new one exists. Throws
// std::filesystem::filesystem_error, also where another process is writing `path`; no temporary
// file remains then.
void write_file(const std::filesystem::path& path, std::string_view data);

// A private temporary folder, deleted with its contents by the destructor.
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
