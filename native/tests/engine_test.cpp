// The TensorRT session, whole, over a fake driver and a fake TensorRT that compute real labels.
//
// The fakes refuse what the real ones refuse. Use that TensorRT leaves undefined is recorded as a
// violation, which fails the test; so does anything left on the GPU at its end.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "errors.h"
#include "fake_tensorrt.h"
#include "scan/nifti.h"
#include "segmenter.h"
#include "storage/files.h"

namespace rare_trt {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Bytes = std::vector<std::uint8_t>;

constexpr int kOutOfMemory = 2, kLaunchFailed = 719;

fs::path tiny() { return fs::path(RARE_TRT_REPOSITORY) / "tests" / "data" / "tiny_v1.rare"; }

void write(const fs::path& path, const std::string& data) {
  std::ofstream(path, std::ios::binary) << data;
}

// The small package with an engine for each of its two routes; `change` adapts their entries.
class EnginePackage {
 public:
  explicit EnginePackage(const std::function<void(Json&)>& change = [](Json&) {}) {
    const Package source = open_package(tiny());
    Json manifest = Json::parse(read_file(tiny() / "manifest.json", 1 << 20));
    fs::copy(tiny(), path(), fs::copy_options::recursive);
    fs::create_directory(path() / "engines");
    // One golden vector per route, the smallest: each test checks its engines again.
    auto& golden = manifest["golden"];
    golden.erase(std::remove_if(golden.begin(), golden.end(),
                                [](const Json& entry) { return entry.at("kind") != "min"; }),
                 golden.end());
    manifest["format_version"] = 2;
    manifest["engines"] = Json::array();
    for (const GraphEntry& graph : source.manifest.graphs) {
      const std::string file = "engines/" + std::to_string(graph.route) + ".engine";
      const std::string blob = (path() / graph.file).string();
      write(path() / file, blob);
      manifest["files"][file] = {{"sha256", sha256_hex(blob)}, {"bytes", blob.size()}};
      Json entry = engine(source.manifest.graph_sha256(graph), graph.route, file);
      change(entry);
      manifest["engines"].push_back(entry);
    }
    write(path() / "manifest.json", manifest.dump());
  }

  fs::path path() const { return folder_.path() / "tiny.rare"; }
  Package open() const { return open_package(path()); }

 private:
  static Json engine(const std::string& graph_sha256, int route, const std::string& file) {
    const Json matrix = {{1, 1}, {32, 32}, {512, 512}};
    const Json image = {{1, 1, 1, 1, 1}, {1, 1, 32, 32, 32}, {1, 1, 512, 512, 512}};
    Json entry = {{"backend", "tensorrt"},
                  {"precision", "fp32"},
                  {"route", route},
                  {"file", file},
                  {"graph_sha256", graph_sha256},
                  {"library", "10.13.3"},
                  {"platform", this_platform()},
                  {"gpu", "Fake L4"},
                  {"compute_capabilities", {"8.9"}}};
    entry["options"] = {{"workspace_mib", nullptr},
                        {"optimization_level", nullptr},
                        {"hardware_compatibility", "none"},
                        {"version_compatible", false},
                        {"tf32", false},
                        {"static_shapes", false}};
    entry["profile"]["image"] = image;
    for (const char* name : {"in_i", "in_j", "in_k", "out_i", "out_j", "out_k"}) {
      entry["profile"][name] = matrix;
    }
    return entry;
  }

  TemporaryFolder folder_;
};

// A new GPU and an empty cache; checks at the end that nothing is left on the GPU.
struct FreshGpu {
  FreshGpu() {
    fake_reset();
    fake_set_device("Fake L4", 8, 9, 0, std::size_t{8} << 30);
    FakeTensorRt::instance() = FakeTensorRt();
    const char* named = std::getenv("RARE_TRT_CACHE");
    if (named != nullptr) before = named;
    setenv("RARE_TRT_CACHE", (cache.path() / "cache").c_str(), 1);
  }
  ~FreshGpu() {
    setenv("RARE_TRT_CACHE", before.c_str(), 1);
    for (const auto& violation : FakeTensorRt::instance().violations)
      CHECK_MESSAGE(false, violation);
    CHECK(FakeTensorRt::instance().live_contexts == 0);
    CHECK(FakeTensorRt::instance().live_engines == 0);
    CHECK(fake_live_device_bytes() == 0);
    CHECK(fake_live_host_bytes() == 0);
    CHECK(fake_live_handles() == 0);
    CHECK(fake_pending() == 0);
  }

  TemporaryFolder cache;
  std::string before;
};

// A golden scan of the package: real anatomy.
struct Scan {
  Scan() : volume(read()) {}

  static NiftiVolume read() {
    const Package package = open_package(tiny());
    const auto& golden = package.manifest.golden;
    const auto typical = std::find_if(golden.begin(), golden.end(), [](const auto& entry) {
      return entry.scan == "golden/route0_typical.nii.gz";
    });
    REQUIRE(typical != golden.end());
    return volume_from_bytes(package.read(typical->scan), typical->scan);
  }

  // The first voxels along each axis: another shape, and so another bucket.
  std::pair<Voxels, Grid> cropped(const Shape& shape) const {
    return {volume.voxels().part({{0, 0, 0}, shape}), volume.grid.box({0, 0, 0}, shape)};
  }

  NiftiVolume volume;
};

struct Segmented {
  Bytes labels;
  Report report;
};

Segmented segment(Segmenter& segmenter, const std::pair<Voxels, Grid>& scan, int route) {
  const auto [ni, nj, nk] = scan.second.shape();
  Segmented found{Bytes(static_cast<std::size_t>(ni * nj * nk), 99), {}};
  const Labels labels = {found.labels.data(), scan.second.shape(), {nj * nk, nk, 1}};
  segmenter.segment(scan.first, scan.second, {route, {}}, labels, found.report);
  return found;
}

Segmented segment(Segmenter& segmenter, int route) {
  const Scan scan;
  return segment(segmenter, scan.cropped(scan.volume.grid.shape()), route);
}

// The labels of OpenVINO for the same scan.
const Bytes& expected(const std::pair<Voxels, Grid>& scan, int route) {
  static Segmenter known(open_package(tiny()), Backend::openvino, 0, [](const std::string&) {});
  static std::map<std::pair<Shape, int>, Bytes> all;
  Bytes& labels = all[{scan.second.shape(), route}];
  if (labels.empty()) labels = segment(known, scan, route).labels;
  return labels;
}

const Bytes& expected(int route) {
  const Scan scan;
  return expected(scan.cropped(scan.volume.grid.shape()), route);
}

// A segmenter and its warnings.
struct Warned {
  explicit Warned(const EnginePackage& package, Backend backend = Backend::tensorrt,
                  std::uint64_t limit = 0)
      : segmenter(package.open(), backend, limit,
                  [this](const std::string& warning) { warnings.push_back(warning); }) {}

  std::vector<std::string> warnings;
  Segmenter segmenter;
};

TEST_CASE("engines return the labels of OpenVINO") {
  const FreshGpu machine;
  const EnginePackage package;
  Warned on_gpu(package);
  for (const int route : {0, 1}) {
    const Segmented found = segment(on_gpu.segmenter, route);
    CHECK(found.report.backend == "tensorrt");
    CHECK(found.report.arithmetic == "fp32");
    CHECK(found.labels == expected(route));
    CHECK(std::any_of(found.labels.begin(), found.labels.end(), [](auto one) { return one != 0; }));
  }
  CHECK(on_gpu.warnings.empty());
}

TEST_CASE("auto prefers the engine, and OpenVINO can be requested") {
  const FreshGpu machine;
  const EnginePackage package;
  Warned best(package, Backend::automatic), requested(package, Backend::openvino);
  CHECK(segment(best.segmenter, 0).report.backend == "tensorrt");
  CHECK(segment(requested.segmenter, 0).report.backend == "openvino");
}

TEST_CASE("a repeated shape is a graph launch, and scans of one bucket share it") {
  const FreshGpu machine;
  const EnginePackage package;
  Warned on_gpu(package);
  const Scan scan;
  const auto [i, j, k] = scan.volume.grid.shape();
  const Shape less = {i, j, k - 1};
  const Bytes known = expected(scan.cropped(less), 1);
  for (int run = 0; run < 3; ++run) segment(on_gpu.segmenter, 1);
  const long captured = fake_calls("cuStreamBeginCapture_v2"),
             launched = fake_calls("cuGraphLaunch");
  const int enqueued = FakeTensorRt::instance().enqueued;
  for (int run = 0; run < 3; ++run) {
    CHECK(segment(on_gpu.segmenter, scan.cropped(less), 1).labels == known);
  }
  CHECK(fake_calls("cuStreamBeginCapture_v2") == captured);
  CHECK(fake_calls("cuGraphLaunch") == launched + 3);
  CHECK(FakeTensorRt::instance().enqueued == enqueued);
}

TEST_CASE("an engine with wrong labels does not pass the golden vectors") {
  for (const char* spoil : {"zeros", "nothing", "replays"}) {
    CAPTURE(spoil);
    const FreshGpu machine;
    const EnginePackage package;
    FakeTensorRt::instance().spoil = spoil;
    Warned requested(package), best(package, Backend::automatic);
    CHECK_THROWS_AS(segment(requested.segmenter, 0), BackendError);
    const Segmented found = segment(best.segmenter, 0);
    CHECK(found.report.backend == "openvino");
    CHECK(found.labels == expected(0));
    REQUIRE(best.warnings.size() == 1);
    CHECK(best.warnings[0].find("tensorrt fp32 is not used for route 0 any more") == 0);
    // The package may be at fault as well as the machine.
    const char* remedy = "where it fails there too, build the package again";
    CHECK((best.warnings[0].find(remedy) != std::string::npos) == (spoil != std::string("nothing")));
    CHECK(segment(best.segmenter, 0).report.backend == "openvino");
    CHECK(best.warnings.size() == 1);
  }
}

TEST_CASE("a later run that writes nothing is an error") {
  const FreshGpu machine;
  const EnginePackage package;
  Warned on_gpu(package);
  segment(on_gpu.segmenter, 0);
  FakeTensorRt::instance().spoil = "nothing";
  CHECK_THROWS_WITH_AS(
      segment(on_gpu.segmenter, 0),
      "tensorrt fp32 on route 0 returned label 255; expected 0 to 2: run `rare-trt verify`, then "
      "build the engine again",
      BackendError);
  FakeTensorRt::instance().spoil = "";
  CHECK(segment(on_gpu.segmenter, 0).labels == expected(0));
}

TEST_CASE("every error of CUDA ends a run, and the next run is right") {
  const FreshGpu machine;
  const EnginePackage package;
  Warned on_gpu(package);
  const Bytes known = expected(0);
  for (int run = 0; run < 3; ++run) segment(on_gpu.segmenter, 0);
  for (const char* function : {"cuGraphLaunch", "cuEventRecord", "cuEventSynchronize"}) {
    CAPTURE(function);
    for (const int code : {kLaunchFailed, kOutOfMemory}) {
      fake_fail(function, code, 0);
      CHECK_THROWS_AS(segment(on_gpu.segmenter, 0), BackendError);
      for (int run = 0; run < 3; ++run) CHECK(segment(on_gpu.segmenter, 0).labels == known);
    }
  }
  // The first run of a shape is queued without a graph.
  for (const char* function :
       {"cuMemcpyHtoDAsync_v2", "cuMemsetD8Async", "cuLaunchHostFunc", "cuMemcpyDtoHAsync_v2"}) {
    CAPTURE(function);
    Warned fresh(package);
    fake_fail(function, kLaunchFailed, 0);
    CHECK_THROWS_AS(segment(fresh.segmenter, 0), BackendError);
    CHECK(segment(fresh.segmenter, 0).labels == known);
  }
  fake_fail("cuCtxPushCurrent_v2", kLaunchFailed, 0);
  CHECK_THROWS_AS(segment(on_gpu.segmenter, 0), BackendError);
  CHECK(segment(on_gpu.segmenter, 0).labels == known);
}

TEST_CASE("an error while a session is opened leaves nothing on the GPU") {
  const EnginePackage package;
  for (const char* function :
       {"cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDriverGetVersion", "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuStreamCreate", "cuEventCreate",
        "cuMemAlloc_v2", "cuMemHostAlloc", "cuMemHostGetDevicePointer_v2"}) {
    for (const long after : {0L, 1L}) {
      CAPTURE(function);
      CAPTURE(after);
      const FreshGpu machine;
      Warned on_gpu(package);
      fake_fail(function, kOutOfMemory, after);
      try {
        const Segmented found = segment(on_gpu.segmenter, 0);
        CHECK(found.labels == expected(0));
      } catch (const BackendError& error) {
        CHECK(std::string(error.what()).size() > 20);
      }
      fake_clear_failures();
    }
  }
}

TEST_CASE("every refusal of TensorRT is an error, and the next run is right") {
  for (const char* function :
       {"open", "load", "create_context", "set_input_shape", "unknown_inputs", "labels_shape",
        "scratch_bytes", "set_address", "enqueue"}) {
    CAPTURE(function);
    const FreshGpu machine;
    const EnginePackage package;
    Warned on_gpu(package);
    FakeTensorRt::instance().fail(function);
    CHECK_THROWS_AS(segment(on_gpu.segmenter, 0), BackendError);
    CHECK(segment(on_gpu.segmenter, 0).labels == expected(0));
  }
}

TEST_CASE("where no CUDA graph can be made, runs are queued one by one") {
  for (const char* function : {"cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"}) {
    CAPTURE(function);
    const FreshGpu machine;
    const EnginePackage package;
    Warned on_gpu(package);
    fake_fail(function, kLaunchFailed, 0);
    for (int run = 0; run < 4; ++run) CHECK(segment(on_gpu.segmenter, 0).labels == expected(0));
    REQUIRE(on_gpu.warnings.size() == 1);
    CHECK(on_gpu.warnings[0].find("no CUDA graph could be made") == 0);
  }
}

TEST_CASE("a growing arena renews addresses and graphs") {
  const FreshGpu machine;
  const EnginePackage package;
  Warned on_gpu(package);
  const Scan scan;
  const auto [i, j, k] = scan.volume.grid.shape();
  const auto small = scan.cropped({24, 32, 24});
  const Bytes known = expected(small, 0);
  for (int round = 0; round < 2; ++round) {
    for (int run = 0; run < 3; ++run) CHECK(segment(on_gpu.segmenter, small, 0).labels == known);
    segment(on_gpu.segmenter, scan.cropped({i, j, k}), 0);
  }
}

TEST_CASE("the number of buckets is bounded") {
  const FreshGpu machine;
  const EnginePackage package;
  Warned on_gpu(package);
  const Scan scan;
  const auto [i, j, k] = scan.volume.grid.shape();
  for (std::int64_t smaller = 0; smaller < 12; ++smaller) {
    const auto other = scan.cropped({i - smaller, j - smaller, k});
    CHECK(segment(on_gpu.segmenter, other, 0).labels == expected(other, 0));
  }
  CHECK(FakeTensorRt::instance().live_contexts <= 8);
}

TEST_CASE("engines are unloaded to make room for each other") {
  const EnginePackage package;
  std::size_t arena = 0;
  {
    const FreshGpu machine;
    Warned on_gpu(package);
    for (const int route : {0, 1}) segment(on_gpu.segmenter, route);
    CHECK(FakeTensorRt::instance().live_engines == 2);
    arena = fake_live_device_bytes();
  }
  {
    // Memory for the arena and one engine, which counts by the size of its file.
    const FreshGpu machine;
    const std::size_t blob = fs::file_size(package.path() / "engines" / "0.engine");
    Warned on_gpu(package, Backend::tensorrt, arena - 2 * 4096 + blob);
    for (const int route : {0, 1, 0, 1}) {
      CHECK(segment(on_gpu.segmenter, route).labels == expected(route));
      CHECK(FakeTensorRt::instance().live_engines == 1);
    }
  }
  {
    const FreshGpu machine;
    Warned on_gpu(package, Backend::tensorrt, 1 << 16);
    CHECK_THROWS_AS(segment(on_gpu.segmenter, 0), BackendError);
  }
  {
    // The GPU itself is full when the second engine is loaded.
    const FreshGpu machine;
    Warned on_gpu(package);
    segment(on_gpu.segmenter, 0);
    FakeTensorRt::instance().fail("load");
    CHECK(segment(on_gpu.segmenter, 1).labels == expected(1));
    CHECK(FakeTensorRt::instance().live_engines == 1);
    CHECK(segment(on_gpu.segmenter, 0).labels == expected(0));
  }
}

TEST_CASE("a GPU that shares the host's memory reads and writes it in place") {
  const FreshGpu machine;
  fake_set_device("Orin", 8, 9, 1, std::size_t{8} << 30);
  const EnginePackage package([](Json& entry) { entry["gpu"] = "Orin, 16 multiprocessors"; });
  Warned on_gpu(package);
  for (int run = 0; run < 3; ++run) CHECK(segment(on_gpu.segmenter, 0).labels == expected(0));
  CHECK(fake_calls("cuMemcpyHtoDAsync_v2") == 0);
  CHECK(fake_calls("cuMemcpyDtoHAsync_v2") == 0);
}

TEST_CASE("an engine of one Orin does not run on another") {
  const FreshGpu machine;
  fake_set_device("Orin", 8, 9, 1, std::size_t{8} << 30);
  const EnginePackage package([](Json& entry) { entry["gpu"] = "Orin, 4 multiprocessors"; });
  Warned best(package, Backend::automatic);
  CHECK(segment(best.segmenter, 0).report.backend == "openvino");
  REQUIRE(best.warnings.size() == 1);
  CHECK(
      best.warnings[0].find("built on Orin, 4 multiprocessors; this is Orin, 16 multiprocessors") !=
      std::string::npos);
}

TEST_CASE("OpenVINO runs a scan beyond the profile, the engine the next one") {
  const FreshGpu machine;
  const EnginePackage package([](Json& entry) {
    entry["profile"]["image"][2] = {1, 1, 32, 512, 512};
  });
  Warned best(package, Backend::automatic), requested(package);
  const Scan scan;
  const auto small = scan.cropped({26, 40, 30});
  CHECK(segment(best.segmenter, small, 0).report.backend == "tensorrt");
  CHECK(segment(best.segmenter, 0).report.backend == "openvino");
  REQUIRE(best.warnings.size() == 1);
  CHECK(best.warnings[0].find("tensorrt fp32 cannot run this scan; openvino fp32 runs") == 0);
  CHECK(segment(best.segmenter, small, 0).report.backend == "tensorrt");
  CHECK_THROWS_AS(segment(requested.segmenter, 0), ShapeError);
}

TEST_CASE("OpenVINO runs after the GPU was lost") {
  const FreshGpu machine;
  const EnginePackage package;
  {
    Warned best(package, Backend::automatic);
    for (const int route : {0, 1, 0, 1}) {
      CHECK(segment(best.segmenter, route).report.backend == "tensorrt");
    }
    constexpr int kIllegalAddress = 700;
    fake_break(kIllegalAddress);
    for (const int route : {0, 1, 0, 1}) {
      const auto found = segment(best.segmenter, route);
      CHECK(found.report.backend == "openvino");
      CHECK(found.labels == expected(route));
    }
    CHECK(best.warnings.size() == 2);
  }
  // In reality the process would end and release what could not be freed.
  fake_reset();
  FakeTensorRt::instance() = FakeTensorRt();
}

TEST_CASE("one warning names the incompatible engine before OpenVINO runs") {
  const FreshGpu machine;
  fake_set_device("Another GPU", 8, 9, 0, std::size_t{8} << 30);
  const EnginePackage package;
  Warned best(package, Backend::automatic), requested(package);
  for (const int route : {0, 1}) CHECK(segment(best.segmenter, route).report.backend == "openvino");
  REQUIRE(best.warnings.size() == 1);
  CHECK(best.warnings[0].find("built on Fake L4; this is Another GPU") != std::string::npos);
  CHECK_THROWS_AS(segment(requested.segmenter, 0), BackendError);
}

TEST_CASE("OpenVINO runs without a GPU") {
  const FreshGpu machine;
  fake_set_devices(0);
  const EnginePackage package;
  Warned best(package, Backend::automatic), requested(package);
  CHECK(segment(best.segmenter, 0).report.backend == "openvino");
  CHECK(best.warnings.size() == 1);
  CHECK_THROWS_AS(segment(requested.segmenter, 0), BackendError);
}

TEST_CASE("a tampered engine is never loaded") {
  const FreshGpu machine;
  const EnginePackage package;
  write(package.path() / "engines" / "0.engine", "something else");
  Warned best(package, Backend::automatic);
  CHECK_THROWS_AS(segment(best.segmenter, 0), PackageError);
}

// The engines of a package in the user's own folder, and the package without them, as `rare-trt
// build` leaves both for a package that it may not write to.
class OwnEngines {
 public:
  explicit OwnEngines(const EnginePackage& package) {
    const char* named = std::getenv("RARE_TRT_HOME");
    if (named != nullptr) before_ = named;
    setenv("RARE_TRT_HOME", home_.path().c_str(), 1);
    const std::string with = read_file(package.path() / "manifest.json", 1 << 20);
    Json values = Json::parse(with);
    for (const Json& engine : values["engines"]) {
      values["files"].erase(engine.at("file").get<std::string>());
    }
    values["engines"] = Json::array();
    write(package.path() / "manifest.json", values.dump());
    folder = home_.path() / "engines" / sha256_hex(values.dump());
    fs::create_directories(folder);
    fs::permissions(folder, fs::perms::owner_all);
    fs::rename(package.path() / "engines", folder / "engines");
    write(folder / "manifest.json", with);
  }
  ~OwnEngines() { setenv("RARE_TRT_HOME", before_.c_str(), 1); }

  fs::path folder;

 private:
  TemporaryFolder home_;
  std::string before_;
};

TEST_CASE("engines in the user's own folder run beside the package") {
  const FreshGpu machine;
  const EnginePackage package;
  const OwnEngines own(package);
  const Package opened = package.open();
  CHECK(opened.manifest.engines.size() == 2);
  CHECK(opened.engines_folder == own.folder);
  CHECK(opened.manifest_sha256 == own.folder.filename());
  Warned best(package, Backend::automatic);
  const Segmented found = segment(best.segmenter, 0);
  CHECK(found.report.backend == "tensorrt");
  CHECK(found.labels == expected(0));
  CHECK(best.warnings.empty());
  // Another package, by one byte of its manifest, does not meet them.
  std::ofstream(package.path() / "manifest.json", std::ios::app) << '\n';
  CHECK(package.open().manifest.engines.empty());
}

TEST_CASE("the user's own engines are refused where they are damaged or may be another user's") {
  const FreshGpu machine;
  const EnginePackage package;
  const OwnEngines own(package);
  const fs::path engine = own.folder / "engines" / "0.engine";
  const std::string data = read_file(engine, 1 << 20);
  write(engine, data + " ");
  const std::string remedy = "remove " + own.folder.string() + " and build the engines again";
  try {
    Warned best(package, Backend::automatic);
    segment(best.segmenter, 0);
    FAIL("a damaged engine was loaded");
  } catch (const PackageError& error) {
    CHECK(std::string(error.what()).find(remedy) != std::string::npos);
  }
  write(engine, data);
  const std::string manifest = read_file(own.folder / "manifest.json", 1 << 20);
  Json other = Json::parse(manifest);
  other["files"]["golden/route0_min.nii.gz"]["sha256"] = std::string(64, '0');
  for (const std::string& changed : {std::string("{}"), other.dump()}) {
    write(own.folder / "manifest.json", changed);
    try {
      package.open();
      FAIL("engines of another package were opened");
    } catch (const PackageError& error) {
      CHECK(std::string(error.what()).find(remedy) != std::string::npos);
    }
  }
  write(own.folder / "manifest.json", manifest);
  fs::permissions(own.folder, fs::perms::all);
  CHECK_THROWS_AS(package.open(), PackageError);
  fs::permissions(own.folder, fs::perms::owner_all);
  CHECK(package.open().manifest.engines.size() == 2);
}

TEST_CASE("two threads share one GPU") {
  const FreshGpu machine;
  const EnginePackage package;
  Warned on_gpu(package);
  const Bytes known[2] = {expected(0), expected(1)};
  std::atomic<int> wrong = 0;
  const auto work = [&](int first) {
    for (int run = 0; run < 4; ++run) {
      const int route = (first + run) % 2;
      wrong += segment(on_gpu.segmenter, route).labels != known[route];
    }
  };
  std::thread other(work, 1);
  work(0);
  other.join();
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace rare_trt
