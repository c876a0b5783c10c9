#include "package/manifest_json.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "constants.h"
#include "errors.h"
#include "package/consistency.h"
#include "package/schema.h"
#include "storage/files.h"
#include "text.h"

namespace rare_trt {
namespace {

using Json = nlohmann::json;

// The standard library's regular expressions, which check strings, need stack for every character.
constexpr std::size_t kMaxString = 1000;

// Values are visited by recursion, here and in the validator. A manifest nests six levels.
constexpr int kMaxDepth = 100;

[[noreturn]] void refuse(const std::string& what) {
  throw PackageError(what + "; build the package again");
}

void check_string(const std::string& value) {
  if (value.size() <= kMaxString) return;
  refuse(text("manifest.json holds a string of ", value.size(), " bytes; expected at most ",
              kMaxString));
}

// Bounds numbers and strings, and turns whole numbers such as 8.0 into integers, which they are to
// the schema.
void normalise_values(Json& value) {
  if (value.is_string()) {
    check_string(value.get_ref<const std::string&>());
  } else if (value.is_number()) {
    const double number = value.get<double>();
    const bool whole = std::nearbyint(number) == number;
    const bool in_range = std::abs(number) <= static_cast<double>(kMaxInteger);
    if (value.is_number_integer() && !in_range) {
      refuse("manifest.json holds an integer that is too large");
    }
    if (value.is_number_float() && whole && in_range) {
      value = static_cast<std::int64_t>(number);
    }
  } else if (value.is_object()) {
    for (auto& [key, item] : value.items()) {
      check_string(key);
      normalise_values(item);
    }
  } else if (value.is_array()) {
    for (auto& item : value) normalise_values(item);
  }
}

// The end of a manifest after `body`: the SHA-256 of these bytes as the last entry.
std::string seal(std::string_view body) {
  return ",\n \"sha256\": \"" + sha256_hex(body) + "\"\n}\n";
}

void check_seal(std::string_view data) {
  const std::size_t size = seal("").size();
  const std::string_view body = data.substr(0, data.size() - std::min(size, data.size()));
  if (data.substr(body.size()) == seal(body)) return;
  throw PackageError(
      "manifest.json does not end with the SHA-256 of its other bytes; it was damaged or "
      "changed by hand: install the package again");
}

// Converts an older format to the newest; refuses a newer one, and one whose seal is broken.
void upgrade(Json& values, std::string_view data) {
  if (!values.is_object()) return;
  const auto version = values.find("format_version");
  if (version == values.end() || !version->is_number_integer()) return;
  if (version->get<std::int64_t>() > kFormatVersion) {
    throw PackageError(text("the package has format version ", version->get<std::int64_t>(),
                            "; this rare-trt reads up to ", kFormatVersion,
                            ": install a newer rare-trt"));
  }
  if (*version == 4 || *version == kFormatVersion) {
    check_seal(data);
    // Version 5 added the distribution of labels; nothing else changed.
    *version = kFormatVersion;
    return;
  }
  // Otherwise a change of one byte, the version, would turn a sealed manifest into one without
  // seal.
  if (values.contains("sha256")) refuse("manifest.json has a seal, which its format does not have");
  // Version 2 added engines, version 3 INT8 and its calibration, version 4 the seal and the
  // training distribution; nothing else changed.
  if (*version == 1) {
    values["engines"] = Json::array();
    *version = 2;
  }
  if (*version == 2) {
    values["calibration"] = Json::array();
    *version = 3;
  }
  if (*version == 3) {
    values["sha256"] = sha256_hex(data);
    *version = kFormatVersion;
  }
}

std::vector<std::string> strings(const Json& values) {
  return values.get<std::vector<std::string>>();
}

// The index of a route, which must fit an int.
int route_index(const Json& value) {
  const auto number = value.get<std::int64_t>();
  if (number > std::numeric_limits<int>::max()) refuse(text("there is no route ", number));
  return static_cast<int>(number);
}

Gaussian gaussian(const Json& values) {
  return {values.at("mean"), values.at("deviation"), values.at("whitening"), values.at("limit")};
}

Model model(const Json& values) {
  const Json& intensity = values.at("intensity");
  const Json& view = values.at("field_of_view_mm");
  Model found;
  found.labels = strings(values.at("labels"));
  found.channels = strings(values.at("channels"));
  found.base_spacing_mm = values.at("base_spacing_mm");
  found.spacing_limits_mm = values.at("spacing_limits_mm");
  found.intensity = {intensity.at("clip_percentiles"), intensity.at("foreground_share")};
  found.field_of_view_mm = {view.at("min"), view.at("typical"), view.at("max")};
  found.volume_range_mm3 = values.at("volume_range_mm3").get<std::vector<std::array<double, 2>>>();
  const Json& network = values.at("network");
  if (network.contains("filters") && network.at("filters").is_number_integer()) {
    found.filters = network.at("filters").get<std::int64_t>();
  }
  if (values.contains("seen") && !values.at("seen").is_null()) {
    const Json& distribution = values.at("seen");
    found.distribution_channels.push_back(distribution.at("patterns").size());
    for (const Json& route : distribution.at("routes")) {
      found.distribution_channels.push_back(route.at("ranges").size());
    }
  }
  if (values.contains("label_distribution") && !values.at("label_distribution").is_null()) {
    for (const Json& route : values.at("label_distribution").at("routes")) {
      found.label_distribution.push_back({route.at("route").get<std::int64_t>(),
                                          gaussian(route.at("shape")),
                                          gaussian(route.at("content"))});
    }
  }
  return found;
}

Route route(const Json& values) {
  return {route_index(values.at("index")), values.at("spacing_mm"), values.at("native_band"),
          values.at("multiple"), values.at("profile").at("max")};
}

GraphEntry graph(const Json& values) {
  return {values.at("precision"), route_index(values.at("route")), values.at("file"),
          values.at("weights")};
}

EngineEntry engine(const Json& values) {
  const Json& options = values.at("options");
  EngineEntry found;
  found.backend = values.at("backend");
  found.precision = values.at("precision");
  found.route = route_index(values.at("route"));
  found.file = values.at("file");
  found.graph_sha256 = values.at("graph_sha256");
  found.library = values.at("library");
  found.platform = values.at("platform");
  if (!values.at("gpu").is_null()) found.gpu = values.at("gpu");
  found.compute_capabilities = strings(values.at("compute_capabilities"));
  found.options = {options.at("hardware_compatibility"), options.at("version_compatible"),
                   options.at("tf32"), options.at("static_shapes")};
  found.profile = values.at("profile").get<std::map<std::string, Shapes>>();
  return found;
}

GoldenEntry golden(const Json& values) {
  return {route_index(values.at("route")), values.at("scan"), values.at("labels"),
          values.at("max_disagreement").get<std::map<std::string, double>>()};
}

CalibrationEntry calibration(const Json& values) {
  CalibrationEntry found{route_index(values.at("route")), values.at("table"), {}};
  for (const Json& variant : values.at("variants")) {
    found.variants.push_back(variant.at("arithmetic"));
  }
  return found;
}

template <class Entry>
std::vector<Entry> entries(const Json& values, Entry (*read)(const Json&)) {
  std::vector<Entry> found;
  std::transform(values.begin(), values.end(), std::back_inserter(found), read);
  return found;
}

Manifest manifest_of(const Json& values) {
  Manifest found;
  found.model = model(values.at("model"));
  found.routes = entries(values.at("routes"), route);
  found.graphs = entries(values.at("graphs"), graph);
  found.engines = entries(values.at("engines"), engine);
  found.golden = entries(values.at("golden"), golden);
  found.calibration = entries(values.at("calibration"), calibration);
  for (const auto& [name, entry] : values.at("files").items()) {
    found.files[name] = {entry.at("sha256"), entry.at("bytes")};
  }
  return found;
}

Json parse(std::string_view data) {
  const auto shallow = [](int depth, Json::parse_event_t, const Json&) {
    if (depth > kMaxDepth) {
      refuse(text("manifest.json nests values more than ", kMaxDepth, " deep"));
    }
    return true;
  };
  try {
    return Json::parse(data.begin(), data.end(), shallow);
  } catch (const Json::exception& error) {
    refuse(text("manifest.json is not JSON (", error.what(), ")"));
  }
}

}  // namespace

Manifest manifest_from_json(std::string_view data) {
  Json values = parse(data);
  normalise_values(values);
  upgrade(values, data);
  if (const std::string fault = schema_fault(values); !fault.empty()) {
    refuse("manifest.json does not fit its schema (" + fault + ")");
  }
  Manifest manifest = manifest_of(values);
  if (const auto fault = first_fault(manifest)) {
    refuse("manifest.json contradicts itself (" + *fault + ")");
  }
  return manifest;
}

}  // namespace rare_trt
