// The C API: arguments, errors, strides, threads.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include "scans.h"

namespace rare_trt_test {
namespace {

const std::string kTiny = std::string(RARE_TRT_REPOSITORY) + "/tests/data/tiny_v1.rare";

// A ball of bright voxels: not anatomy, but it gets labels.
struct Ball {
  Ball() : voxels(40 * 48 * 40) {
    for (int k = 0; k < 40; ++k) {
      for (int j = 0; j < 48; ++j) {
        for (int i = 0; i < 40; ++i) {
          const int x = i - 20, y = j - 24, z = k - 20;
          const bool inside = x * x + y * y + z * z < 150;
          voxels[static_cast<std::size_t>((k * 48 + j) * 40 + i)] =
              static_cast<std::int16_t>((inside ? 700 : 300) + (i * 7 + j * 3 + k * 5) % 50);
        }
      }
    }
    scan.size = sizeof scan;
    scan.voxels = voxels.data();
    scan.dtype = RARE_TRT_INT16;
    scan.channels = 1;
    scan.shape[0] = 40, scan.shape[1] = 48, scan.shape[2] = 40;
    for (int axis = 0; axis < 4; ++axis) scan.affine[5 * axis] = 1;
  }

  std::vector<std::int16_t> voxels;
  rare_trt_scan scan{};
  std::vector<std::uint8_t> labels = std::vector<std::uint8_t>(40 * 48 * 40, 77);
};

rare_trt_report empty_report() {
  rare_trt_report report{};
  report.size = sizeof report;
  return report;
}

TEST_CASE("the version is that of the Python package") {
  const std::string source = read(fs::path(RARE_TRT_REPOSITORY) / "rare_trt" / "_version.py");
  CHECK(source.find("VERSION = \"" + std::string(rare_trt_version()) + "\"") != std::string::npos);
}

TEST_CASE("NULL is refused, and closing NULL does nothing") {
  const Segmenter tiny(kTiny);
  Ball ball;
  rare_trt_segmenter* segmenter = tiny.get();
  CHECK(rare_trt_open(nullptr, nullptr, &segmenter) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(segmenter == nullptr);
  CHECK(rare_trt_last_error() == std::string("folder is NULL; expected an address: pass one"));
  CHECK(rare_trt_open(kTiny.c_str(), nullptr, nullptr) == RARE_TRT_ERROR_ARGUMENT);
  std::uint8_t* labels = ball.labels.data();
  const auto segment = [&](rare_trt_segmenter* with, const rare_trt_scan* scan, std::uint8_t* to) {
    return rare_trt_segment(with, scan, nullptr, to, nullptr, nullptr);
  };
  CHECK(segment(nullptr, &ball.scan, labels) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(segment(tiny.get(), nullptr, labels) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(segment(tiny.get(), &ball.scan, nullptr) == RARE_TRT_ERROR_ARGUMENT);
  rare_trt_report report = empty_report();
  const double spacing[3] = {1, 1, 1};
  CHECK(rare_trt_choose_route(nullptr, spacing, nullptr, &report) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(rare_trt_choose_route(tiny.get(), nullptr, nullptr, &report) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(rare_trt_choose_route(tiny.get(), spacing, nullptr, nullptr) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(rare_trt_channel_count(nullptr) == 0);
  CHECK(rare_trt_label_count(nullptr) == 0);
  CHECK(rare_trt_label_name(nullptr, 0) == nullptr);
  rare_trt_close(nullptr);
}

TEST_CASE("structs of an unknown size are refused") {
  const Segmenter tiny(kTiny);
  Ball ball;
  rare_trt_segmenter* segmenter = nullptr;
  rare_trt_options options{};
  CHECK(rare_trt_open(kTiny.c_str(), &options, &segmenter) == RARE_TRT_ERROR_ARGUMENT);
  options.size = sizeof options;
  options.backend = 9;
  CHECK(rare_trt_open(kTiny.c_str(), &options, &segmenter) == RARE_TRT_ERROR_ARGUMENT);
  rare_trt_request request{};
  rare_trt_report report = empty_report();
  const auto segment = [&] {
    return rare_trt_segment(tiny.get(), &ball.scan, &request, ball.labels.data(), nullptr, &report);
  };
  CHECK(segment() == RARE_TRT_ERROR_ARGUMENT);
  request.size = sizeof request;
  report.size = 8;
  CHECK(segment() == RARE_TRT_ERROR_ARGUMENT);
  report.size = sizeof report;
  ball.scan.size += 8;
  CHECK(segment() == RARE_TRT_ERROR_ARGUMENT);
  CHECK(std::string(rare_trt_last_error()).find("scan->size") == 0);
}

TEST_CASE("structs of an older header are taken, and not written beyond their size") {
  const Segmenter tiny(kTiny);
  Ball ball;
  const double point[3] = {20, 24, 20};
  rare_trt_request request{};
  request.size = offsetof(rare_trt_request, at_count);
  request.at_mm = point;
  request.at_count = 1000;
  rare_trt_report report{};
  report.size = offsetof(rare_trt_report, disputed_voxels);
  report.disputed_voxels = -7;
  REQUIRE(rare_trt_segment(tiny.get(), &ball.scan, &request, ball.labels.data(), nullptr,
                           &report) == RARE_TRT_OK);
  CHECK(report.disputed_voxels == -7);
  CHECK(report.size == offsetof(rare_trt_report, disputed_voxels));
  CHECK(report.total_ms > 0);
  request.size = sizeof request;
  request.at_mm = nullptr;
  CHECK(rare_trt_segment(tiny.get(), &ball.scan, &request, ball.labels.data(), nullptr, nullptr) ==
        RARE_TRT_ERROR_ARGUMENT);
  CHECK(std::string(rare_trt_last_error()).find("at_count of 1000") != std::string::npos);
}

TEST_CASE("the number of channels and the names of labels") {
  const Segmenter tiny(kTiny);
  CHECK(rare_trt_channel_count(tiny.get()) == 1);
  CHECK(rare_trt_label_count(tiny.get()) == 3);
  CHECK(rare_trt_label_name(tiny.get(), 0) == std::string("background"));
  CHECK(rare_trt_label_name(tiny.get(), 3) == nullptr);
  CHECK(rare_trt_label_name(tiny.get(), -1) == nullptr);
}

TEST_CASE("the status is that of the error") {
  rare_trt_segmenter* segmenter = nullptr;
  CHECK(rare_trt_open("/no/such/package", nullptr, &segmenter) == RARE_TRT_ERROR_PACKAGE);
  CHECK(segmenter == nullptr);
  CHECK(std::string(rare_trt_last_error()).find("/no/such/package") == 0);
  CHECK(rare_trt_open("/", nullptr, &segmenter) == RARE_TRT_ERROR_PACKAGE);
  CHECK(std::string(rare_trt_last_error()).find("/: is no package (it has no manifest.json)") == 0);
  rare_trt_options options{};
  options.size = sizeof options;
  options.backend = RARE_TRT_BACKEND_TENSORRT;
  options.preload = 1;
  CHECK(rare_trt_open(kTiny.c_str(), &options, &segmenter) == RARE_TRT_ERROR_BACKEND);
  CHECK(std::string(rare_trt_last_error()).find("tensorrt cannot run route") == 0);
}

TEST_CASE("the route is chosen without a scan") {
  const Segmenter tiny(kTiny);
  rare_trt_report report = empty_report();
  const double fine[3] = {1, 1, 1}, coarse[3] = {2, 2, 2}, absurd[3] = {100, 1, 1};
  REQUIRE(rare_trt_choose_route(tiny.get(), fine, nullptr, &report) == RARE_TRT_OK);
  CHECK(report.route == 0);
  CHECK(report.next_route == 1);
  CHECK(report.resampled == 0);
  REQUIRE(rare_trt_choose_route(tiny.get(), coarse, nullptr, &report) == RARE_TRT_OK);
  CHECK(report.route == 1);
  // Every number of the decision: the root mean square of 1, 1.25 and 2.5 mm is 1.7139.
  const double uneven[3] = {1, 1.25, 2.5};
  REQUIRE(rare_trt_choose_route(tiny.get(), uneven, nullptr, &report) == RARE_TRT_OK);
  CHECK(report.route == 0);
  CHECK(report.next_route == 1);
  CHECK(report.effective_spacing_mm == doctest::Approx(1.7139).epsilon(1e-4));
  CHECK(report.distance == doctest::Approx(1.7139).epsilon(1e-4));
  CHECK(report.next_distance == doctest::Approx(0.85696).epsilon(1e-4));
  for (int axis = 0; axis < 3; ++axis) {
    CHECK(report.spacing_mm[axis] == uneven[axis]);
    CHECK(report.working_spacing_mm[axis] == 1);
    CHECK(report.factors[axis] == 1 / uneven[axis]);
  }
  const std::int32_t route = 0, none = 7;
  REQUIRE(rare_trt_choose_route(tiny.get(), coarse, &route, &report) == RARE_TRT_OK);
  CHECK(report.forced != 0);
  CHECK(report.resampled != 0);
  CHECK(report.factors[0] == 0.5);
  CHECK(rare_trt_choose_route(tiny.get(), coarse, &none, &report) == RARE_TRT_ERROR_SCAN);
  CHECK(rare_trt_choose_route(tiny.get(), absurd, nullptr, &report) == RARE_TRT_ERROR_SCAN);
}

TEST_CASE("a refused scan leaves the labels unchanged") {
  const Segmenter tiny(kTiny);
  Ball ball;
  const auto segment = [&] {
    return rare_trt_segment(tiny.get(), &ball.scan, nullptr, ball.labels.data(), nullptr, nullptr);
  };
  const rare_trt_scan good = ball.scan;
  const auto with = [&](const auto& change) {
    ball.scan = good;
    change(ball.scan);
    return segment();
  };
  CHECK(with([](auto& scan) { scan.dtype = 0; }) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(with([](auto& scan) { scan.dtype = 11; }) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(with([](auto& scan) { scan.voxels = nullptr; }) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(with([](auto& scan) { scan.channels = 0; }) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(with([](auto& scan) { scan.channels = 2; }) == RARE_TRT_ERROR_SCAN);
  CHECK(with([](auto& scan) { scan.shape[1] = 0; }) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(with([](auto& scan) { scan.shape[1] = -48; }) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(with([](auto& scan) { scan.shape[1] = INT64_MAX; }) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(with([](auto& scan) { scan.strides[0] = INT64_MIN; }) == RARE_TRT_ERROR_ARGUMENT);
  // A stride of 0 repeats slices.
  CHECK(with([](auto& scan) {
          const std::int64_t forgotten[4] = {2, 2 * 40, 0, 2 * 40 * 48};
          std::copy_n(forgotten, 4, scan.strides);
        }) == RARE_TRT_ERROR_ARGUMENT);
  CHECK(with([](auto& scan) { scan.affine[3] = std::numeric_limits<double>::infinity(); }) ==
        RARE_TRT_ERROR_SCAN);
  CHECK(with([](auto& scan) { scan.affine[5] = 0; }) == RARE_TRT_ERROR_SCAN);
  CHECK(with([](auto& scan) { scan.affine[15] = 0; }) == RARE_TRT_ERROR_SCAN);
  CHECK(with([](auto& scan) { scan.affine[0] = 0.1; }) == RARE_TRT_ERROR_SCAN);
  // A whole head.
  CHECK(with([](auto& scan) { scan.affine[0] = 9; }) == RARE_TRT_ERROR_SCAN);
  CHECK(std::string(rare_trt_last_error()).find("the field of view is") == 0);
  std::fill(ball.voxels.begin(), ball.voxels.end(), std::int16_t{5});
  CHECK(with([](auto&) {}) == RARE_TRT_ERROR_SCAN);
  CHECK(std::string(rare_trt_last_error()).find("no contrast") != std::string::npos);
  CHECK(std::all_of(ball.labels.begin(), ball.labels.end(), [](auto one) { return one == 77; }));
}

TEST_CASE("NaN and infinite voxels are refused") {
  const Segmenter tiny(kTiny);
  Ball ball;
  std::vector<float> values(ball.voxels.begin(), ball.voxels.end());
  values[5] = std::nanf("");
  values[6] = INFINITY;
  ball.scan.voxels = values.data();
  ball.scan.dtype = RARE_TRT_FLOAT32;
  CHECK(rare_trt_segment(tiny.get(), &ball.scan, nullptr, ball.labels.data(), nullptr, nullptr) ==
        RARE_TRT_ERROR_SCAN);
  CHECK(std::string(rare_trt_last_error()).find("2 of 76800 voxels are NaN or infinite") == 0);
}

TEST_CASE("labels may be in any order, at any address, with gaps") {
  const Segmenter tiny(kTiny);
  Ball ball;
  REQUIRE(rare_trt_segment(tiny.get(), &ball.scan, nullptr, ball.labels.data(), nullptr, nullptr) ==
          RARE_TRT_OK);
  CHECK(std::any_of(ball.labels.begin(), ball.labels.end(), [](auto one) { return one != 0; }));
  std::vector<std::uint8_t> wide(40 * 48 * 40 * 2 + 1, 77);
  const std::int64_t strides[3] = {-2 * 48 * 40, 2 * 40, 2};
  std::uint8_t* first = wide.data() + 1 + 39 * 2 * 48 * 40;
  REQUIRE(rare_trt_segment(tiny.get(), &ball.scan, nullptr, first, strides, nullptr) ==
          RARE_TRT_OK);
  std::size_t different = 0;
  for (int i = 0; i < 40; ++i) {
    for (int j = 0; j < 48; ++j) {
      for (int k = 0; k < 40; ++k) {
        different += first[i * strides[0] + j * strides[1] + k * strides[2]] !=
                     ball.labels[static_cast<std::size_t>((k * 48 + j) * 40 + i)];
      }
    }
  }
  CHECK(different == 0);
  CHECK(std::count(wide.begin(), wide.end(), 77) == 40 * 48 * 40 + 1);
  for (const auto& bad : {std::array<std::int64_t, 3>{1, 1, 1}, {0, 40, 1920}, {1, 39, 1920}}) {
    CHECK(rare_trt_segment(tiny.get(), &ball.scan, nullptr, ball.labels.data(), bad.data(),
                           nullptr) == RARE_TRT_ERROR_ARGUMENT);
  }
}

TEST_CASE("voxels may be at odd addresses") {
  const Segmenter tiny(kTiny);
  Ball ball;
  std::vector<std::uint8_t> known = ball.labels;
  REQUIRE(rare_trt_segment(tiny.get(), &ball.scan, nullptr, known.data(), nullptr, nullptr) ==
          RARE_TRT_OK);
  std::vector<char> shifted(ball.voxels.size() * 2 + 1);
  std::memcpy(shifted.data() + 1, ball.voxels.data(), ball.voxels.size() * 2);
  ball.scan.voxels = shifted.data() + 1;
  REQUIRE(rare_trt_segment(tiny.get(), &ball.scan, nullptr, ball.labels.data(), nullptr, nullptr) ==
          RARE_TRT_OK);
  CHECK(ball.labels == known);
}

TEST_CASE("a tampered graph is refused") {
  const fs::path copy = fs::temp_directory_path() / "rare-trt-tampered.rare";
  fs::remove_all(copy);
  fs::copy(kTiny, copy, fs::copy_options::recursive);
  const fs::path graph = copy / "graphs" / "fp32" / "route0.onnx";
  REQUIRE(fs::exists(graph));
  std::string data = read(graph);
  data[data.size() / 2] ^= 1;
  std::ofstream(graph, std::ios::binary) << data;
  const Segmenter damaged(copy.string());
  Ball ball;
  CHECK(rare_trt_segment(damaged.get(), &ball.scan, nullptr, ball.labels.data(), nullptr,
                         nullptr) == RARE_TRT_ERROR_PACKAGE);
  fs::remove_all(copy);
}

TEST_CASE("a process that is forked after a scan gets an error instead of waiting for ever") {
  const Segmenter tiny(kTiny);
  Ball ball;
  REQUIRE(rare_trt_segment(tiny.get(), &ball.scan, nullptr, ball.labels.data(), nullptr, nullptr) ==
          RARE_TRT_OK);
  const auto is_refused = [&](rare_trt_segmenter* segmenter) {
    return rare_trt_segment(segmenter, &ball.scan, nullptr, ball.labels.data(), nullptr, nullptr) ==
               RARE_TRT_ERROR_BACKEND &&
           std::string(rare_trt_last_error()).find("was forked from process") != std::string::npos;
  };
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    rare_trt_segmenter* own = nullptr;
    const bool opened = rare_trt_open(kTiny.c_str(), nullptr, &own) == RARE_TRT_OK;
    const bool refused = is_refused(tiny.get()) && opened && is_refused(own);
    rare_trt_close(own);
    _exit(refused ? 0 : 1);
  }
  int status = 1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

TEST_CASE("an invalid number of threads is refused, and a valid one gives labels") {
  setenv("RARE_TRT_THREADS", "many", 1);
  rare_trt_segmenter* segmenter = nullptr;
  CHECK(rare_trt_open(kTiny.c_str(), nullptr, &segmenter) == RARE_TRT_ERROR_BACKEND);
  CHECK(segmenter == nullptr);
  CHECK(rare_trt_last_error() ==
        std::string("RARE_TRT_THREADS is 'many'; expected a whole number of CPU threads from 1 up: "
                    "correct it or leave it out"));
  setenv("RARE_TRT_THREADS", "1", 1);
  {
    const Segmenter tiny(kTiny);
    Ball ball;
    CHECK(rare_trt_segment(tiny.get(), &ball.scan, nullptr, ball.labels.data(), nullptr, nullptr) ==
          RARE_TRT_OK);
  }
  unsetenv("RARE_TRT_THREADS");
}

TEST_CASE("each thread has its own last error") {
  rare_trt_segmenter* segmenter = nullptr;
  CHECK(rare_trt_open("/first", nullptr, &segmenter) == RARE_TRT_ERROR_PACKAGE);
  std::string other;
  std::thread([&] {
    other = rare_trt_last_error();
    rare_trt_open("/second", nullptr, &segmenter);
  }).join();
  CHECK(other.empty());
  CHECK(std::string(rare_trt_last_error()).find("/first") == 0);
}

TEST_CASE("two threads on one handle, and on two, get the same labels") {
  Ball ball;
  const Segmenter one(kTiny), two(kTiny);
  std::vector<std::uint8_t> known = ball.labels;
  REQUIRE(rare_trt_segment(one.get(), &ball.scan, nullptr, known.data(), nullptr, nullptr) ==
          RARE_TRT_OK);
  for (rare_trt_segmenter* second : {one.get(), two.get()}) {
    int failed[2] = {};
    const auto work = [&](rare_trt_segmenter* segmenter, int& wrong) {
      std::vector<std::uint8_t> labels(known.size());
      for (std::int32_t run = 0; run < 6; ++run) {
        // Both routes, so that both are opened by both threads.
        const std::int32_t route = run % 2;
        rare_trt_request request{};
        request.size = sizeof request;
        request.route = &route;
        const auto status =
            rare_trt_segment(segmenter, &ball.scan, &request, labels.data(), nullptr, nullptr);
        wrong += status != RARE_TRT_OK || (route == 0 && labels != known);
      }
    };
    std::thread first(work, one.get(), std::ref(failed[0]));
    work(second, failed[1]);
    first.join();
    CHECK(failed[0] == 0);
    CHECK(failed[1] == 0);
  }
}

}  // namespace
}  // namespace rare_trt_test
