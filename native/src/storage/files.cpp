#include "storage/files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <system_error>

namespace rare_trt {
namespace {

[[noreturn]] void fail(const char* what, const std::filesystem::path& path) {
  const int code = errno == 0 ? EIO : errno;
  throw std::filesystem::filesystem_error(what, path, {code, std::generic_category()});
}

struct Descriptor {
  explicit Descriptor(int opened) : number(opened) {}
  ~Descriptor() {
    if (number >= 0) close(number);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  const int number;
};

bool is_still(int descriptor, const std::string& name) {
  struct stat opened {
  }, named{};
  return fstat(descriptor, &opened) == 0 && lstat(name.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

// Removes the temporary file of a killed process, which no longer holds its lock; false and errno
// where a running process holds it.
bool remove_leftover(const std::string& name) {
  const Descriptor left(open(name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (left.number < 0) return errno == ENOENT;
  if (flock(left.number, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return false;
  return !is_still(left.number, name) || unlink(name.c_str()) == 0;
}

// A new file `name`, locked while it is open; -1 and errno where it cannot be created.
int open_temporary(const std::string& name) {
  while (true) {
    const int made = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (made >= 0) {
      flock(made, LOCK_EX);
      // Before it was locked another process may have removed it as a leftover.
      if (is_still(made, name)) return made;
      close(made);
    } else if (errno != EEXIST || !remove_leftover(name)) {
      return -1;
    }
  }
}

}  // namespace

std::string sha256(std::initializer_list<std::string_view> parts) {
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(),
                                                                   EVP_MD_CTX_free);
  bool done = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  for (const auto part : parts) {
    done = done && EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int size = 0;
  done = done && EVP_DigestFinal_ex(context.get(), digest.data(), &size) == 1;
  if (!done) throw std::runtime_error("libcrypto gives no SHA-256");
  return {digest.begin(), digest.begin() + size};
}

std::string sha256_hex(std::string_view data) { return hex(sha256({data})); }

std::string hex(std::string_view bytes) {
  constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (const char byte : bytes) {
    out += digits[static_cast<unsigned char>(byte) >> 4];
    out += digits[static_cast<unsigned char>(byte) & 15];
  }
  return out;
}

std::string read_file(const std::filesystem::path& path, std::int64_t limit) {
  // Not blocking: a pipe or a device must not make the caller wait.
  const Descriptor file(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat state {};
  if (file.number < 0 || fstat(file.number, &state) != 0) fail("cannot be read", path);
  if (!S_ISREG(state.st_mode)) {
    errno = EINVAL;
    fail("is not a regular file", path);
  }
  // One byte more than expected shows that the file is too long, or has grown.
  std::string data(static_cast<std::size_t>(std::min<std::int64_t>(state.st_size, limit)) + 1,
                   '\0');
  std::size_t done = 0;
  while (done < data.size()) {
    const ssize_t got = read(file.number, data.data() + done, data.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("cannot be read", path);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  data.resize(done);
  return data;
}

void write_file(const std::filesystem::path& path, std::string_view data) {
  const std::string name = path.parent_path() / ("." + path.filename().string() + ".part");
  const Descriptor file(open_temporary(name));
  if (file.number < 0) fail("cannot be written", path);
  std::size_t done = 0;
  while (done < data.size()) {
    const ssize_t wrote = write(file.number, data.data() + done, data.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) break;
    done += static_cast<std::size_t>(wrote);
  }
  // Synced before the rename: a loss of power must not leave the name without the content.
  if (done == data.size() && fsync(file.number) == 0 &&
      std::rename(name.c_str(), path.c_str()) == 0) {
    const Descriptor folder(open(path.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    fsync(folder.number);
    return;
  }
  const int code = errno;
  unlink(name.c_str());
  errno = code;
  fail("cannot be written", path);
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "rare-trt-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) fail("no temporary folder can be created", name);
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace rare_trt
