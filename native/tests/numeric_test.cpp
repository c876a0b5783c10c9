// Sums, percentiles, text and bounds that the vectors do not cover.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "errors.h"
#include "plan/resampling.h"
#include "scan/field_of_view.h"
#include "scan/numeric.h"
#include "sessions/machine.h"
#include "text.h"

namespace rare_trt {
namespace {

TEST_CASE("sums do not lose small values beside large ones") {
  const std::vector<double> tenths(1000003, 0.1);
  CHECK(wide_sum(tenths) == doctest::Approx(100000.3).epsilon(1e-14));
  CHECK(wide_sum(std::vector<float>(5, 0.5F)) == 2.5);
  CHECK(pairwise_sum(nullptr, 0) == 0.0);
}

TEST_CASE("percentiles lie between the values") {
  std::vector<double> values = {5, 1, 3, 2, 4};
  CHECK(percentile(values, 0.0).counted_from(0) == 1);
  CHECK(percentile(values, 0.5).counted_from(0) == 3);
  CHECK(percentile(values, 0.625).counted_from(0) == 3.5);
  CHECK(percentile(values, 1.0).counted_from(0) == 5);
  std::vector<float> one = {7};
  CHECK(percentile(one, 0.995).counted_from(0) == 7);
}

TEST_CASE("numbers are printed the same in every locale") {
  CHECK(number(1234567.0) == "1.23457e+06");
  CHECK(number(0.5) == "0.5");
  CHECK(join(Triple{1, 2.5, 3}, " x ") == "1 x 2.5 x 3");
}

TEST_CASE("versions are compared by number") {
  CHECK(version_numbers("10.13.3") == std::vector<int>{10, 13, 3});
  CHECK(version_numbers("10.13") > version_numbers("10.3"));
  CHECK(version_numbers("11.0rc1") == std::vector<int>{11, 0});
  CHECK(version_numbers("").empty());
}

TEST_CASE("absurd sizes are refused before memory is allocated") {
  const Grid grid({4, 4, 4}, Affine::Identity());
  CHECK_THROWS_AS(subvoxel_counts(grid, 1e-9), ScanError);
  CHECK_THROWS_AS(subvoxel_counts(grid, std::numeric_limits<double>::min()), ScanError);
  const Route fine = {0, 1e-9, {0.95, 1.05}, 2, {8, 8, 8}};
  CHECK_THROWS_AS(plan_resampling(grid, fine, grid), ScanError);
  const Route coarse = {0, 1.0, {0.95, 1.05}, std::int64_t{1} << 53, {8, 8, 8}};
  CHECK_THROWS_AS(plan_resampling(grid, coarse, grid), ScanError);
  Affine tiny = Affine::Identity();
  tiny.topLeftCorner<3, 3>() *= 1e-120;
  CHECK_THROWS_AS(Grid({4, 4, 4}, tiny), ScanError);
}

}  // namespace
}  // namespace rare_trt
