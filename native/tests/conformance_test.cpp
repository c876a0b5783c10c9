// The mathematics, compared with the vectors that Python wrote.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>

#include "errors.h"
#include "package/manifest_json.h"
#include "package/reading.h"
#include "plan/memory.h"
#include "scan/field_of_view.h"
#include "scan/intensity.h"
#include "scan/out_of_distribution.h"
#include "sessions/compatibility.h"
#include "vectors.h"

namespace rare_trt {
namespace {

std::vector<Route> routes() {
  std::vector<Route> found;
  for (int index = 0; index < 4; ++index) {
    found.push_back({index,
                     std::pow(2.0, index),
                     {0.95, 1.05},
                     16 >> index,
                     {80 >> index, 96 >> index, 80 >> index}});
  }
  return found;
}

template <class Integers>
std::vector<std::int64_t> integers(const Integers& values) {
  return {values.begin(), values.end()};
}

std::vector<std::int64_t> integers(const Json& values) {
  return values.get<std::vector<std::int64_t>>();
}

Shape shape_of(const Json& vector) { return vector.at("shape").get<Shape>(); }

// An array of the vector's own type, C order, as voxels.
struct Stored {
  explicit Stored(const Json& vector) {
    static const std::map<std::string, DType> types = {
        {"uint8", DType::u8},   {"int8", DType::i8},    {"uint16", DType::u16},
        {"int16", DType::i16},  {"uint32", DType::u32}, {"int32", DType::i32},
        {"uint64", DType::u64}, {"int64", DType::i64},  {"float32", DType::f32},
        {"float64", DType::f64}};
    auto shape = integers(vector.at("shape"));
    if (shape.size() == 3) shape.push_back(1);
    voxels.dtype = types.at(vector.at("dtype"));
    voxels.shape = {shape[0], shape[1], shape[2]};
    voxels.channels = shape[3];
    with_type(voxels.dtype, [&](auto type) {
      using Type = decltype(type);
      const auto values = vector.at("voxels").get<std::vector<Type>>();
      bytes.resize(values.size() * sizeof(Type));
      std::memcpy(bytes.data(), values.data(), bytes.size());
      voxels.channel_stride = sizeof(Type);
    });
    voxels.strides[2] = voxels.channel_stride * shape[3];
    voxels.strides[1] = voxels.strides[2] * shape[2];
    voxels.strides[0] = voxels.strides[1] * shape[1];
    voxels.data = bytes.data();
  }

  std::vector<std::byte> bytes;
  Voxels voxels;
};

bool is_box(const Box& box, const Json& ranges) {
  for (std::size_t axis = 0; axis < 3; ++axis) {
    if (box.start[axis] != ranges[axis][0]) return false;
    if (box.start[axis] + box.shape[axis] != ranges[axis][1]) return false;
  }
  return true;
}

bool is_ranges(const Ranges& ranges, const Json& known) {
  for (std::size_t axis = 0; axis < 3; ++axis) {
    if (ranges[axis].start != known[axis][0] || ranges[axis].stop != known[axis][1]) return false;
  }
  return true;
}

// The largest difference between a matrix and its sparse rows.
double difference(const Matrix& matrix, const Json& known) {
  const Json& rows = known.at("rows");
  REQUIRE(matrix.rows == static_cast<std::int64_t>(rows.size()));
  REQUIRE(matrix.columns == known.at("columns"));
  double worst = 0;
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    const Json& values = rows[static_cast<std::size_t>(row)];
    const std::int64_t first = values[0];
    for (std::int64_t column = 0; column < matrix.columns; ++column) {
      const auto at = static_cast<std::size_t>(column - first + 1);
      const bool inside = column >= first && at < values.size();
      const float expected = inside ? values[at].get<float>() : 0.0F;
      worst = std::max(worst, static_cast<double>(std::abs(matrix.at(row, column) - expected)));
    }
  }
  return worst;
}

double sum(const Matrix& matrix) {
  double total = 0;
  for (const float value : matrix.values) total += static_cast<double>(value);
  return total;
}

TEST_CASE("routes are those of Python") {
  for (const Json& vector : vectors("routes")) {
    CAPTURE(vector.dump());
    std::optional<int> forced;
    if (!vector.at("forced").is_null()) forced = vector.at("forced").get<int>();
    const Triple spacing = triple_of(vector.at("spacing_mm"));
    if (is_refused(vector)) {
      CHECK_THROWS_AS(choose_route(spacing, routes(), {0.5, 10.0}, forced), ScanError);
      continue;
    }
    const RouteDecision decision = choose_route(spacing, routes(), {0.5, 10.0}, forced);
    CHECK(decision.route == vector.at("route"));
    CHECK(decision.next_route == vector.at("next_route").get<int>());
    CHECK(decision.forced == forced.has_value());
    CHECK(decision.effective_spacing_mm == vector.at("effective_spacing_mm"));
    CHECK(decision.working_spacing_mm == vector.at("working_spacing_mm").get<Triple>());
    CHECK(decision.factors == vector.at("factors").get<Triple>());
    CHECK(decision.spacing_ratio == vector.at("spacing_ratio"));
    CHECK(decision.next_spacing_ratio == vector.at("next_spacing_ratio"));
  }
}

TEST_CASE("the canonical order of grids is that of Python") {
  for (const Json& vector : vectors("grids")) {
    CAPTURE(vector.dump());
    const Affine affine = affine_of(vector.at("affine"));
    if (is_refused(vector)) {
      CHECK_THROWS_AS(Grid(shape_of(vector), affine), ScanError);
      continue;
    }
    const Canonical canonical(Grid(shape_of(vector), affine));
    CHECK(canonical.source == vector.at("source").get<std::array<int, 3>>());
    CHECK(canonical.flipped == vector.at("flipped").get<std::array<bool, 3>>());
    CHECK(canonical.grid.shape() == vector.at("canonical_shape").get<Shape>());
    CHECK(close(canonical.grid.affine(), vector.at("canonical_affine")));
    CHECK(close(canonical.grid.spacing_mm(), vector.at("spacing_mm")));
    CHECK(close(canonical.grid.extent_mm(), vector.at("extent_mm")));
  }
}

TEST_CASE("the six matrices and the tiles are Python's") {
  for (const Json& vector : vectors("plans")) {
    CAPTURE(vector.dump().substr(0, 300));
    const Grid grid(shape_of(vector), affine_of(vector.at("affine")));
    const Route route = routes()[vector.at("route").get<std::size_t>()];
    const Shape parts = subvoxel_counts(grid, 1.0);
    CHECK(parts == vector.at("parts").get<Shape>());
    const ResamplingPlan plan = plan_resampling(grid, route, grid.subdivide(parts));
    CHECK(plan.core == vector.at("core").get<Shape>());
    if (vector.at("max_shape").is_null()) {
      for (std::size_t axis = 0; axis < 3; ++axis) {
        CHECK(difference(plan.in[axis], vector.at("in")[axis]) < 2e-7);
        CHECK(difference(plan.out[axis], vector.at("out")[axis]) < 2e-7);
      }
      continue;
    }
    const auto found = tiles(plan, vector.at("max_shape").get<Shape>());
    const Json& known = vector.at("tiles");
    REQUIRE(found.size() == known.size());
    for (std::size_t at = 0; at < found.size(); ++at) {
      CHECK(is_ranges(found[at].image, known[at].at("image")));
      CHECK(is_ranges(found[at].output, known[at].at("output")));
      for (std::size_t axis = 0; axis < 3; ++axis) {
        const Matrix &in = found[at].in[axis], &out = found[at].out[axis];
        CHECK(integers(std::array{in.rows, in.columns}) ==
              integers(known[at].at("in_shape")[axis]));
        CHECK(integers(std::array{out.rows, out.columns}) ==
              integers(known[at].at("out_shape")[axis]));
        CHECK(close(sum(in), known[at].at("in_sum")[axis]));
        CHECK(close(sum(out), known[at].at("out_sum")[axis]));
      }
    }
  }
}

TEST_CASE("tiles of large volumes are Python's") {
  for (const Json& vector : vectors("tile_shapes")) {
    CAPTURE(vector.dump());
    Model model;
    model.filters = vector.at("filters").get<std::int64_t>();
    const int index = vector.at("route");
    const auto per_voxel = bytes_per_voxel(model, index, vector.at("arithmetic"));
    REQUIRE(per_voxel.has_value());
    CHECK(*per_voxel == vector.at("per_voxel").get<double>());
    const Shape shape = shape_of(vector);
    const Grid grid(shape, Affine::Identity());
    const Route route = routes()[static_cast<std::size_t>(index)];
    const auto chosen = [&] {
      const MemoryNeeds needs = {vector.at("scan"),     shape,
                                 vector.at("channels"), vector.at("stored"),
                                 vector.at("classes"),  *per_voxel};
      return tile_shape(plan_resampling(grid, route, grid), route, needs,
                        vector.at("limit").get<double>());
    };
    if (vector.contains("refused")) {
      CHECK_THROWS_AS(chosen(), ScanError);
    } else {
      CHECK(chosen() == vector.at("tile").get<Shape>());
    }
  }
}

TEST_CASE("every type of voxel is normalised to the same float32 as in Python") {
  for (const Json& vector : vectors("intensities")) {
    CAPTURE(vector.dump().substr(0, 100));
    const Stored stored(vector);
    const IntensityRule rule = {vector.at("clip_percentiles"), vector.at("foreground_share")};
    if (is_refused(vector)) {
      CHECK_THROWS_AS(normalise(stored.voxels, rule), ScanError);
      continue;
    }
    const auto found = normalise(stored.voxels, rule).values;
    const auto known = vector.at("normalised").get<std::vector<float>>();
    REQUIRE(found.size() == known.size());
    for (std::size_t at = 0; at < found.size(); ++at) CHECK(close(found[at], known[at]));
  }
}

TEST_CASE("constant slices at the faces are removed") {
  for (const Json& vector : vectors("paddings")) {
    CAPTURE(vector.dump());
    CHECK(is_box(without_padding(Stored(vector).voxels), vector.at("box")));
  }
}

TEST_CASE("boxes around points") {
  for (const Json& vector : vectors("boxes")) {
    CAPTURE(vector.dump());
    const Grid grid(shape_of(vector), affine_of(vector.at("affine")));
    const Triple point = triple_of(vector.at("at_mm")), size = triple_of(vector.at("size_mm"));
    if (is_refused(vector)) {
      CHECK_THROWS_AS(box_at(grid, point, size), ScanError);
    } else {
      CHECK(is_box(box_at(grid, point, size), vector.at("box")));
    }
  }
}

TEST_CASE("regions of scans in any order of axes") {
  for (const Json& vector : vectors("regions")) {
    CAPTURE(vector.dump());
    const Grid grid(shape_of(vector), affine_of(vector.at("affine")));
    const auto [ni, nj, nk] = grid.shape();
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(ni * nj * nk));
    for (std::size_t at = 0; at < bytes.size(); ++at) bytes[at] = at % 251;
    const Voxels scan = {reinterpret_cast<const std::byte*>(bytes.data()),
                         DType::u8,
                         grid.shape(),
                         {nj * nk, nk, 1},
                         1,
                         1};
    std::optional<Triple> at_mm;
    if (!vector.at("at_mm").is_null()) at_mm = triple_of(vector.at("at_mm"));
    const Json& view = vector.at("field_of_view_mm");
    const FieldOfView accepted = {view.at("min"), view.at("typical"), view.at("max")};
    if (is_refused(vector)) {
      CHECK_THROWS_AS(select_region(scan, grid, accepted, at_mm), ScanError);
      continue;
    }
    const Region region = select_region(scan, grid, accepted, at_mm);
    CHECK(is_box(region.box, vector.at("box")));
    CHECK(close(region.grid.affine(), vector.at("region_affine")));
    std::vector<int> found;
    for (std::int64_t i = 0; i < region.voxels.shape[0]; ++i) {
      for (std::int64_t j = 0; j < region.voxels.shape[1]; ++j) {
        for (std::int64_t k = 0; k < region.voxels.shape[2]; ++k) {
          const auto& strides = region.voxels.strides;
          found.push_back(static_cast<int>(
              region.voxels.data[i * strides[0] + j * strides[1] + k * strides[2]]));
        }
      }
    }
    CHECK(found.front() == vector.at("first"));
    CHECK(found.back() == vector.at("last"));
    CHECK(std::accumulate(found.begin(), found.end(), 0) == vector.at("sum"));
  }
}

TEST_CASE("a voxel gets the label of most of its sub-voxels") {
  for (const Json& vector : vectors("majority_votes")) {
    CAPTURE(vector.dump());
    const auto fine = vector.at("fine").get<std::vector<std::uint8_t>>();
    const Shape parts = vector.at("parts").get<Shape>();
    const auto found = majority_vote(fine, shape_of(vector), parts, 4);
    CHECK(found == vector.at("labels").get<std::vector<std::uint8_t>>());
  }
}

TEST_CASE("the shape of labels and the intensities under them") {
  for (const Json& vector : vectors("label_statistics")) {
    CAPTURE(vector.dump().substr(0, 200));
    const Grid grid(shape_of(vector), affine_of(vector.at("affine")));
    const Image image = {vector.at("channels"), grid.shape(), vector.at("image")};
    const auto labels = vector.at("labels").get<std::vector<std::uint8_t>>();
    const Grid fine = grid.subdivide(vector.at("parts").get<Shape>());
    const auto found = label_statistics(image, grid, labels, fine, 3, IntensityRule{{}, 0.15});
    const auto alike = [](const std::vector<double>& values, const Json& known) {
      REQUIRE(values.size() == known.size());
      for (std::size_t at = 0; at < values.size(); ++at) {
        CHECK(std::isnan(values[at]) == known[at].is_null());
        if (!std::isnan(values[at])) CHECK(close(values[at], number_of(known[at])));
      }
    };
    alike(found.shape, vector.at("label_shape"));
    alike(found.content, vector.at("content"));
    CHECK(found.touch_edge == vector.at("touch_edge").get<bool>());
  }
}

TEST_CASE("manifests are accepted and refused as in Python") {
  const Json tiny = read_json(repository() / "tests" / "data" / "tiny_v1.rare" / "manifest.json");
  for (const Json& vector : vectors("manifests")) {
    CAPTURE(vector.dump());
    const std::string data = vector.contains("raw") ? vector.at("raw").get<std::string>()
                                                    : tiny.patch(vector.at("patch")).dump();
    if (vector.at("accepted").get<bool>()) {
      CHECK_NOTHROW(manifest_from_json(data));
    } else {
      CHECK_THROWS_AS(manifest_from_json(data), PackageError);
    }
  }
}

TEST_CASE("the user's own engines lie where Python's do") {
  std::map<std::string, std::optional<std::string>> before;
  for (const char* name : {"RARE_TRT_HOME", "XDG_DATA_HOME", "HOME"}) {
    const char* value = std::getenv(name);
    before[name] = value == nullptr ? std::nullopt : std::optional<std::string>(value);
  }
  const auto set = [](const std::string& name, const std::optional<std::string>& value) {
    value ? setenv(name.c_str(), value->c_str(), 1) : unsetenv(name.c_str());
  };
  for (const Json& vector : vectors("engines_folders")) {
    CAPTURE(vector.dump());
    const Json& environment = vector.at("environment");
    for (const auto& [name, value] : before) {
      set(name, environment.contains(name)
                    ? std::optional<std::string>(environment.at(name).get<std::string>())
                    : std::nullopt);
    }
    const auto folder = engines_folder(vector.at("manifest_sha256").get<std::string>());
    CHECK(folder == vector.at("folder").get<std::string>());
  }
  for (const auto& [name, value] : before) set(name, value);
}

TEST_CASE("engines are compatible with the same machines as in Python") {
  Json tiny = read_json(repository() / "tests" / "data" / "tiny_v1.rare" / "manifest.json");
  tiny["format_version"] = 3;
  tiny["calibration"] = Json::array();
  tiny["files"]["engines/one.engine"] = {{"sha256", std::string(64, '0')}, {"bytes", 3}};
  for (const Json& vector : vectors("compatibility")) {
    CAPTURE(vector.dump());
    tiny["engines"] = {vector.at("engine")};
    const Manifest manifest = manifest_from_json(tiny.dump());
    const Json& differs = vector.at("machine");
    Machine machine = {"linux-x86_64",
                       Gpu{"Some GPU", differs.value("compute_capability", "8.9"), false, ""},
                       "no GPU",
                       {{"tensorrt", "10.13.3"}},
                       {{"tensorrt", "not installed"}}};
    if (differs.contains("libraries")) machine.libraries.clear();
    if (differs.contains("gpu")) machine.gpu.reset();
    CHECK(incompatibility(manifest.engines[0], manifest, machine).empty() == vector.at("fits"));
  }
}

}  // namespace
}  // namespace rare_trt
