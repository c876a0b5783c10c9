// Memory does not grow when a package is opened, used and closed repeatedly.
#include <malloc.h>
#include <unistd.h>

#include "scans.h"

namespace rare_trt_test {
namespace {

constexpr int kWarm = 50, kCycles = 300;

std::int64_t resident_kib() {
  // Free memory that the allocator keeps varies with the timing of OpenVINO's threads.
  malloc_trim(0);
  std::int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

TEST_CASE("memory does not grow") {
  const Json listed = index();
  const std::string tiny = listed.at("packages").at("tiny");
  for (const Json& entry : listed.at("scans")) {
    if (entry.at("name") != "1 mm, tiny") continue;
    const Scan scan(entry);
    std::int64_t before = 0;
    for (int cycle = 0; cycle < kWarm + kCycles; ++cycle) {
      if (cycle == kWarm) before = resident_kib();
      const Segmenter segmenter(tiny);
      REQUIRE(differences(segmenter.get(), scan) == 0);
    }
    const std::int64_t grown = resident_kib() - before;
    MESSAGE("grown by ", grown, " KiB over ", kCycles, " cycles");
    CHECK(grown < 1024);
  }
}

}  // namespace
}  // namespace rare_trt_test
