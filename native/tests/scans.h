// Real scans in memory, written by make_scans.py, and segmenters for them.
#pragma once

#include <doctest/doctest.h>
#include <rare_trt.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace rare_trt_test {

using Json = nlohmann::json;
namespace fs = std::filesystem;

inline std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file, path.string());
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The output folder of make_scans.py, which ctest passes.
inline fs::path folder() {
  const char* named = std::getenv("RARE_TRT_TEST_SCANS");
  REQUIRE_MESSAGE(named != nullptr, "run this test with ctest");
  return named;
}

inline Json index() { return Json::parse(read(folder() / "index.json")); }

// One entry of the index, with its voxels and Python's labels.
struct Scan {
  explicit Scan(const Json& entry)
      : entry(entry),
        memory(read(folder() / entry.at("voxels").get<std::string>())),
        expected(read(folder() / entry.at("labels").get<std::string>())) {
    static const std::map<std::string, rare_trt_dtype> types = {
        {"uint8", RARE_TRT_UINT8},    {"int8", RARE_TRT_INT8},     {"uint16", RARE_TRT_UINT16},
        {"int16", RARE_TRT_INT16},    {"uint32", RARE_TRT_UINT32}, {"int32", RARE_TRT_INT32},
        {"uint64", RARE_TRT_UINT64},  {"int64", RARE_TRT_INT64},   {"float32", RARE_TRT_FLOAT32},
        {"float64", RARE_TRT_FLOAT64}};
    scan.size = sizeof scan;
    scan.voxels = memory.data() + entry.at("offset").get<std::size_t>();
    scan.dtype = types.at(entry.at("dtype"));
    scan.channels = entry.at("channels");
    for (std::size_t axis = 0; axis < 3; ++axis) scan.shape[axis] = entry.at("shape")[axis];
    for (std::size_t axis = 0; axis < 4; ++axis) scan.strides[axis] = entry.at("strides")[axis];
    for (std::size_t at = 0; at < 16; ++at) scan.affine[at] = entry.at("affine")[at];
    request.size = sizeof request;
    if (!entry.at("route").is_null()) {
      route = entry.at("route");
      request.route = &route;
    }
    if (!entry.at("at_mm").is_null()) {
      for (const Json& point : entry.at("at_mm")) {
        for (std::size_t axis = 0; axis < 3; ++axis) points.push_back(point[axis]);
      }
      request.at_mm = points.data();
      request.at_count = points.size() / 3;
    }
  }
  Scan(const Scan&) = delete;
  Scan& operator=(const Scan&) = delete;

  std::size_t voxels() const { return expected.size(); }

  Json entry;
  std::string memory;
  std::string expected;  // i fastest
  rare_trt_scan scan{};
  rare_trt_request request{};

 private:
  std::int32_t route = 0;
  std::vector<double> points;
};

// A segmenter that is closed with this object.
class Segmenter {
 public:
  explicit Segmenter(const std::string& path, const rare_trt_options* options = nullptr) {
    const rare_trt_status status = rare_trt_open(path.c_str(), options, &segmenter_);
    REQUIRE_MESSAGE(status == RARE_TRT_OK, rare_trt_last_error());
  }
  ~Segmenter() { rare_trt_close(segmenter_); }
  Segmenter(const Segmenter&) = delete;
  Segmenter& operator=(const Segmenter&) = delete;

  rare_trt_segmenter* get() const { return segmenter_; }

 private:
  rare_trt_segmenter* segmenter_ = nullptr;
};

// The number of voxels of `scan` that `segmenter` labels differently from Python.
inline std::size_t differences(rare_trt_segmenter* segmenter, const Scan& scan,
                               rare_trt_report* report = nullptr) {
  // Not a label of any package, so that voxels that are not written are counted.
  std::vector<std::uint8_t> labels(scan.voxels(), 255);
  const auto status =
      rare_trt_segment(segmenter, &scan.scan, &scan.request, labels.data(), nullptr, report);
  REQUIRE_MESSAGE(status == RARE_TRT_OK, rare_trt_last_error());
  std::size_t different = 0;
  for (std::size_t at = 0; at < labels.size(); ++at) {
    different += labels[at] != static_cast<std::uint8_t>(scan.expected[at]);
  }
  return different;
}

}  // namespace rare_trt_test
