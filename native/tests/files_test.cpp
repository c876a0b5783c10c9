// Files: hashes, bounded reads, the cache, packages and golden vectors.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>

#include "errors.h"
#include "package/manifest_json.h"
#include "package/reading.h"
#include "scan/nifti.h"
#include "sessions/openvino.h"
#include "storage/cache.h"
#include "storage/files.h"

namespace rare_trt {
namespace {

namespace fs = std::filesystem;

fs::path tiny() { return fs::path(RARE_TRT_REPOSITORY) / "tests" / "data" / "tiny_v1.rare"; }

// A folder for the cache during the lifetime of this object.
struct CacheFolder {
  CacheFolder() : before(std::getenv("RARE_TRT_CACHE")) {
    setenv("RARE_TRT_CACHE", (folder.path() / "cache").c_str(), 1);
  }
  ~CacheFolder() {
    if (before == nullptr) {
      unsetenv("RARE_TRT_CACHE");
    } else {
      setenv("RARE_TRT_CACHE", previous.c_str(), 1);
    }
  }

  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder.path() / "cache")) {
      found.push_back(entry.path());
    }
    return found;
  }

  TemporaryFolder folder;
  const char* before;
  std::string previous = before == nullptr ? "" : before;
};

void write(const fs::path& path, const std::string& data) {
  std::ofstream(path, std::ios::binary) << data;
}

std::string gzipped(const std::string& data) {
  z_stream stream{};
  deflateInit2(&stream, 1, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, data.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

TEST_CASE("the hash is SHA-256") {
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256({"a", "", "bc"}) == sha256({"abc"}));
  CHECK(sha256({}).size() == 32);
}

TEST_CASE("a file is read up to the limit") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "file";
  write(path, std::string(100000, 'x'));
  CHECK(read_file(path, 100000).size() == 100000);
  CHECK(read_file(path, 200000).size() == 100000);
  CHECK(read_file(path, 10).size() == 11);
  CHECK_THROWS_AS(read_file(folder.path(), 10), fs::filesystem_error);
  CHECK_THROWS_AS(read_file(folder.path() / "none", 10), fs::filesystem_error);
}

TEST_CASE("a file is written completely or not at all") {
  const TemporaryFolder folder;
  write_file(folder.path() / "file", "one");
  write_file(folder.path() / "file", "two");
  CHECK(read_file(folder.path() / "file", 10) == "two");
  CHECK_THROWS_AS(write_file(folder.path() / "none" / "file", "three"), fs::filesystem_error);
  CHECK(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()) == 1);
}

TEST_CASE("the cache returns what was stored under the key") {
  const CacheFolder own;
  const Cache cache;
  CHECK_FALSE(cache.load({"a", "b"}));
  cache.store({"a", "b"}, "content");
  cache.store({"ab"}, "");
  CHECK(cache.load({"a", "b"}) == "content");
  CHECK(cache.load({"ab"}) == "");
  CHECK_FALSE(cache.load({"a"}));
}

TEST_CASE("the cache has the names and contents of Python's") {
  const CacheFolder own;
  const Cache cache;
  cache.store({"openvino", "x"}, "blob");
  const auto files = own.files();
  REQUIRE(files.size() == 1);
  const std::string key("openvino\0x", 10);
  const std::string name = sha256_hex(key + std::string(2, '\0')) + ".bin";
  CHECK(files[0].filename() == name);
  CHECK(read_file(files[0], 100) == sha256({key + std::string(2, '\0'), "blob"}) + "blob");
}

TEST_CASE("a damaged file of the cache is ignored") {
  const CacheFolder own;
  const Cache cache;
  cache.store({"a"}, "content");
  const fs::path path = own.files().front();
  std::string data = read_file(path, 1000);
  data.back() ^= 1;
  write(path, data);
  CHECK_FALSE(cache.load({"a"}));
  write(path, "short");
  CHECK_FALSE(cache.load({"a"}));
}

TEST_CASE("a cache that others may write to is not used") {
  const CacheFolder own;
  const Cache cache;
  cache.store({"a"}, "content");
  const fs::path folder = own.files().front().parent_path();
  struct stat state {};
  REQUIRE(stat(folder.c_str(), &state) == 0);
  CHECK((state.st_mode & 0777) == 0700);
  chmod(folder.c_str(), 0777);
  CHECK_FALSE(cache.load({"a"}));
  cache.store({"b"}, "content");
  CHECK(own.files().size() == 1);
}

TEST_CASE("a cache that cannot be used is one warning") {
  std::vector<std::string> warnings;
  const auto warn = [&](const std::string& sentence) { warnings.push_back(sentence); };
  const TemporaryFolder folder;
  const CacheFolder own;
  const auto store_twice = [&] {
    const Cache cache(warn);
    cache.store({"a"}, "content");
    cache.store({"a"}, "content");
    CHECK_FALSE(cache.load({"a"}));
    REQUIRE(warnings.size() == 1);
    const std::string found = warnings.front();
    warnings.clear();
    return found;
  };
  const auto contains = [](const std::string& sentence, const std::string& part) {
    return sentence.find(part) != std::string::npos;
  };
  write(folder.path() / "file", "in the way");
  setenv("RARE_TRT_CACHE", (folder.path() / "file" / "cache").c_str(), 1);
  CHECK(contains(store_twice(), "the cache's folder cannot be written (Not a directory): nothing"));
  fs::create_directory(folder.path() / "open");
  chmod((folder.path() / "open").c_str(), 0777);
  setenv("RARE_TRT_CACHE", (folder.path() / "open").c_str(), 1);
  CHECK(contains(store_twice(), "others own or may write to the cache's folder: nothing is kept"));
  // Only root becomes a user that has no passwd entry.
  if (geteuid() == 0) {
    const pid_t child = fork();
    if (child == 0) {
      unsetenv("RARE_TRT_CACHE");
      unsetenv("XDG_CACHE_HOME");
      unsetenv("HOME");
      if (setuid(54321) != 0) _exit(2);
      const Cache cache(warn);
      cache.store({"a"}, "content");
      _exit(warnings.size() == 1 && contains(warnings[0], "has no home directory") ? 0 : 1);
    }
    int status = 1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
}

TEST_CASE("a file that another process is writing is no warning") {
  const CacheFolder own;
  int warnings = 0;
  const Cache cache([&](const std::string&) { ++warnings; });
  cache.store({"a"}, "content");
  const fs::path path = own.files().front();
  const fs::path part = path.parent_path() / ("." + path.filename().string() + ".part");
  write(part, "half");
  const int running = open(part.c_str(), O_RDONLY);
  REQUIRE(flock(running, LOCK_EX) == 0);
  cache.store({"a"}, "content");
  CHECK(warnings == 0);
  CHECK(cache.load({"a"}) == "content");
  close(running);
}

TEST_CASE("CPU quotas of control groups are read in both versions") {
  const auto quota = [](const std::vector<std::pair<std::string, std::string>>& files) {
    const TemporaryFolder root;
    for (const auto& [name, content] : files) {
      fs::create_directories((root.path() / name).parent_path());
      write(root.path() / name, content);
    }
    return cpu_quota(root.path());
  };
  const double none = std::numeric_limits<double>::infinity();
  const std::string cgroup = "proc/self/cgroup", top = "sys/fs/cgroup/";
  CHECK(quota({}) == none);
  CHECK(quota({{cgroup, "0::/\n"}, {top + "cpu.max", "max 100000\n"}}) == none);
  CHECK(quota({{cgroup, "0::/\n"}, {top + "cpu.max", "150000 100000\n"}}) == 1.5);
  CHECK(quota({{cgroup, "0::/a/b\n"},
               {top + "a/cpu.max", "200000 100000\n"},
               {top + "a/b/cpu.max", "max 100000\n"}}) == 2.0);
  const std::string v1 = "3:cpuset:/\n2:cpu,cpuacct:/docker/x\n";
  CHECK(quota({{cgroup, v1},
               {top + "cpu,cpuacct/cpu.cfs_quota_us", "50000\n"},
               {top + "cpu,cpuacct/cpu.cfs_period_us", "100000\n"}}) == 0.5);
  CHECK(quota({{cgroup, v1},
               {top + "cpu,cpuacct/cpu.cfs_quota_us", "-1\n"},
               {top + "cpu,cpuacct/cpu.cfs_period_us", "100000\n"}}) == none);
}

TEST_CASE("a package's files are verified against their hashes") {
  const TemporaryFolder folder;
  const fs::path copy = folder.path() / "tiny.rare";
  fs::copy(tiny(), copy, fs::copy_options::recursive);
  const Package package = open_package(copy);
  CHECK(package.manifest.routes.size() == 2);
  const std::string name = package.manifest.golden[0].scan;
  std::string data = package.read(name);
  CHECK(data.size() > 100);
  data[50] ^= 1;
  write(copy / name, data);
  CHECK_THROWS_AS(package.read(name), PackageError);
  write(copy / name, data + "more");
  CHECK_THROWS_AS(package.read(name), PackageError);
  fs::remove(copy / name);
  CHECK_THROWS_AS(package.read(name), PackageError);
  // No link is followed, even one to the right file.
  const fs::path outside = folder.path() / "outside";
  fs::copy(tiny() / name, outside);
  fs::create_symlink(outside, copy / name);
  CHECK_THROWS_AS(package.read(name), PackageError);
  fs::remove(copy / name);
  fs::copy(outside, copy / "inside");
  fs::create_symlink(copy / "inside", copy / name);
  CHECK_THROWS_AS(package.read(name), PackageError);
  fs::remove(copy / name);
  fs::rename(copy / "inside", copy / name);
  CHECK_NOTHROW(package.read(name));
  const fs::path golden = copy / fs::path(name).parent_path();
  fs::rename(golden, folder.path() / "elsewhere");
  fs::create_directory_symlink(folder.path() / "elsewhere", golden);
  CHECK_THROWS_AS(package.read(name), PackageError);
}

TEST_CASE("a pipe instead of a file is refused without waiting") {
  const TemporaryFolder folder;
  const fs::path copy = folder.path() / "tiny.rare";
  fs::copy(tiny(), copy, fs::copy_options::recursive);
  const Package package = open_package(copy);
  const std::string name = package.manifest.golden[0].scan;
  fs::remove(copy / name);
  REQUIRE(mkfifo((copy / name).c_str(), 0600) == 0);
  CHECK_THROWS_AS(package.read(name), PackageError);
}

TEST_CASE("a killed process's temporary file is replaced; a running one's is not") {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "a.bin", part = folder.path() / ".a.bin.part";
  write(part, "half");
  write_file(path, "whole");
  CHECK(read_file(path, 100) == "whole");
  CHECK_FALSE(fs::exists(part));
  write(part, "half");
  const int running = open(part.c_str(), O_RDONLY);
  REQUIRE(flock(running, LOCK_EX) == 0);
  CHECK_THROWS_AS(write_file(path, "new"), fs::filesystem_error);
  CHECK(read_file(path, 100) == "whole");
  CHECK(read_file(part, 100) == "half");
  close(running);
  write_file(path, "new");
  CHECK(read_file(path, 100) == "new");
}

TEST_CASE("every byte of a sealed manifest counts") {
  std::string tiny_manifest = read_file(tiny() / "manifest.json", 1 << 20);
  const std::string old = "\"format_version\": 1,";
  tiny_manifest.replace(tiny_manifest.find(old), old.size(),
                        "\"format_version\": 4,\n \"engines\": [],\n \"calibration\": [],");
  const std::string body = tiny_manifest.substr(0, tiny_manifest.rfind("\n}"));
  const std::string sealed = body + ",\n \"sha256\": \"" + sha256_hex(body) + "\"\n}\n";
  REQUIRE_NOTHROW(manifest_from_json(sealed));
  for (std::size_t at = 0; at < sealed.size(); ++at) {
    std::string changed = sealed;
    changed[at] = static_cast<char>(changed[at] ^ (1 << at % 8));
    CAPTURE(at);
    CHECK_THROWS_AS(manifest_from_json(changed), PackageError);
  }
  for (const std::string& changed : {sealed + " ", sealed.substr(0, sealed.size() - 1),
                                     "\n" + sealed, body + "\n}\n", std::string()}) {
    CHECK_THROWS_AS(manifest_from_json(changed), PackageError);
  }
}

TEST_CASE("a folder that is not a package is refused") {
  const TemporaryFolder folder;
  CHECK_THROWS_AS(open_package(folder.path() / "none"), PackageError);
  CHECK_THROWS_AS(open_package(folder.path()), PackageError);
  write(folder.path() / "manifest.json", std::string(2 << 20, ' '));
  CHECK_THROWS_AS(open_package(folder.path()), PackageError);
  // So deep that recursion would exhaust the stack.
  std::string deep;
  for (int level = 0; level < 150000; ++level) deep += R"({"a":)";
  write(folder.path() / "manifest.json", deep + "1" + std::string(150000, '}'));
  CHECK_THROWS_AS(open_package(folder.path()), PackageError);
  fs::remove(folder.path() / "manifest.json");
  fs::create_directory(folder.path() / "manifest.json");
  CHECK_THROWS_AS(open_package(folder.path()), PackageError);
}

TEST_CASE("every file of the shipped packages is read") {
  const fs::path shipped = fs::path(RARE_TRT_REPOSITORY) / "rare_trt" / "packages";
  for (const fs::path& folder : {tiny(), shipped / "hippocampus.rare"}) {
    const Package package = open_package(folder);
    for (const auto& [name, entry] : package.manifest.files) CHECK_NOTHROW(package.read(name));
    for (const auto& entry : package.manifest.golden) {
      const NiftiVolume scan = volume_from_bytes(package.read(entry.scan), entry.scan);
      const auto [ni, nj, nk] = scan.grid.shape();
      CHECK(scan.channels == 1);
      CHECK(scan.bytes.size() == static_cast<std::size_t>(ni * nj * nk));
      const double spacing = package.route(entry.route).spacing_mm;
      CHECK(scan.grid.spacing_mm() == Triple{spacing, spacing, spacing});
    }
  }
}

TEST_CASE("malformed golden vectors are refused") {
  const Package package = open_package(tiny());
  const std::string name = package.manifest.golden[0].scan;
  const std::string good = package.read(name);
  std::string plain(1 << 20, '\0');
  {
    const TemporaryFolder folder;
    write(folder.path() / "scan.nii.gz", good);
    gzFile file = gzopen((folder.path() / "scan.nii.gz").c_str(), "rb");
    plain.resize(static_cast<std::size_t>(gzread(file, plain.data(), 1 << 20)));
    gzclose(file);
  }
  REQUIRE_NOTHROW(volume_from_bytes(gzipped(plain), name));
  CHECK_THROWS_AS(volume_from_bytes("", name), PackageError);
  CHECK_THROWS_AS(volume_from_bytes(plain, name), PackageError);
  CHECK_THROWS_AS(volume_from_bytes(good.substr(0, good.size() / 2), name), PackageError);
  CHECK_THROWS_AS(volume_from_bytes(gzipped(plain.substr(0, 300)), name), PackageError);
  CHECK_THROWS_AS(volume_from_bytes(gzipped(plain + "x"), name), PackageError);
  CHECK_THROWS_AS(volume_from_bytes(gzipped(std::string((1 << 28) + 1000, 'x')), name),
                  PackageError);
  // Axes, an axis, type, offset, slope, unit, sform code, a column of the affine, magic.
  for (const std::size_t at : {40U, 42U, 70U, 110U, 114U, 123U, 254U, 344U}) {
    CAPTURE(at);
    std::string damaged = plain;
    damaged[at] = at == 254 ? '\0' : static_cast<char>(damaged[at] ^ 0x55);
    CHECK_THROWS_AS(volume_from_bytes(gzipped(damaged), name), PackageError);
  }
  std::string flat = plain;
  flat.replace(280, 48, std::string(48, '\0'));
  CHECK_THROWS_AS(volume_from_bytes(gzipped(flat), name), PackageError);
}

}  // namespace
}  // namespace rare_trt
