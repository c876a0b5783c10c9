// Labels of real scans through the C API equal Python's in every voxel.
#include <memory>

#include "scans.h"

namespace rare_trt_test {
namespace {

TEST_CASE("every scan gets Python's labels, route and volumes") {
  const Json listed = index();
  std::map<std::string, std::unique_ptr<Segmenter>> segmenters;
  for (const auto& [name, path] : listed.at("packages").items()) {
    rare_trt_options options{};
    options.size = sizeof options;
    options.backend = RARE_TRT_BACKEND_OPENVINO;
    segmenters[name] = std::make_unique<Segmenter>(path.get<std::string>(), &options);
  }
  REQUIRE(listed.at("scans").size() >= 30);
  int flagged = 0;
  for (const Json& entry : listed.at("scans")) {
    CAPTURE(entry.at("name"));
    const Scan scan(entry);
    rare_trt_report report{};
    report.size = sizeof report;
    CHECK(differences(segmenters.at(entry.at("package"))->get(), scan, &report) == 0);
    CHECK(report.route == entry.at("expected_route"));
    CHECK(report.arithmetic == entry.at("expected_arithmetic").get<std::string>());
    CHECK(report.backend == std::string("openvino"));
    CHECK((report.touches_edge != 0) == entry.at("touches_edge").get<bool>());
    CHECK(report.disputed_voxels == entry.at("disputed_voxels").get<std::int64_t>());
    std::string flags;
    for (const auto& flag : entry.at("label_flags")) flags += flag.get<std::string>() + "\n";
    CHECK(std::string(rare_trt_last_flags()) == flags);
    flagged += flags.find("doubtful labels") != std::string::npos;
    const Json& volumes = entry.at("volumes_mm3");
    for (std::size_t at = 0; at < volumes.size(); ++at) {
      CHECK(report.volumes_mm3[at + 1] == doctest::Approx(volumes[at].get<double>()));
    }
    CHECK(report.volumes_mm3[0] == 0);
    CHECK(report.volumes_mm3[volumes.size() + 1] == 0);
    const auto boxes = static_cast<int>(entry.at("at_mm").is_null() ? 1 : entry.at("at_mm").size());
    CHECK((report.tiles > boxes) == (entry.at("package") == "tiled"));
    CHECK(report.total_ms > 0);
  }
  // The scans are whole, coarse, and of noise: some are doubted, and not all.
  CHECK(flagged > 0);
  CHECK(flagged < static_cast<int>(listed.at("scans").size()));
}

}  // namespace
}  // namespace rare_trt_test
