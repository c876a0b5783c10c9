#include "package/manifest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

#include "errors.h"
#include "manifest_schema.h"
#include "storage/files.h"
#include "text.h"

namespace rare_trt {
namespace {

using Json = nlohmann::json;

// Every integer of the file stands for itself as a double too.
constexpr double kMaxInteger = 9007199254740992.0;

// The standard library's regular expressions take stack for every character that they look at.
constexpr std::size_t kMaxString = 1000;

// Values are walked by recursion, here and in the validator. A manifest is six deep.
constexpr int kMaxDepth = 100;

[[noreturn]] void refuse(const std::string& what) {
  throw PackageError(what + "; build the package again");
}

void check_string(const std::string& value) {
  if (value.size() <= kMaxString) return;
  refuse(text("manifest.json holds a text of ", value.size(), " bytes; expected at most ",
              kMaxString));
}

// Bounds numbers and texts, and makes whole numbers such as 8.0 the integers they are to the
// schema.
void settle(Json& value) {
  if (value.is_string()) {
    check_string(value.get_ref<const std::string&>());
  } else if (value.is_number()) {
    const double number = value.get<double>();
    const bool whole = std::nearbyint(number) == number;
    if (value.is_number_integer() && std::abs(number) > kMaxInteger) {
      refuse("manifest.json holds an integer that is too large");
    }
    if (value.is_number_float() && whole && std::abs(number) <= kMaxInteger) {
      value = static_cast<std::int64_t>(number);
    }
  } else if (value.is_object()) {
    for (auto& [key, item] : value.items()) {
      check_string(key);
      settle(item);
    }
  } else if (value.is_array()) {
    for (auto& item : value) settle(item);
  }
}

// What the file must end with after `body`: the SHA-256 of those very bytes as the last entry.
std::string seal(std::string_view body) {
  return ",\n \"sha256\": \"" + sha256_hex(body) + "\"\n}\n";
}

void check_seal(std::string_view data) {
  const std::size_t size = seal("").size();
  const std::string_view body = data.substr(0, data.size() - std::min(size, data.size()));
  if (data.substr(body.size()) == seal(body)) return;
  throw PackageError(
      "manifest.json does not end with the SHA-256 of what stands before; it was damaged or "
      "changed by hand: install the package again");
}

// Brings an older format up to date; refuses a newer one, and one whose seal is broken.
void upgrade(Json& values, std::string_view data) {
  if (!values.is_object()) return;
  const auto version = values.find("format_version");
  if (version == values.end() || !version->is_number_integer()) return;
  if (version->get<std::int64_t>() > kFormatVersion) {
    throw PackageError(text("the package has format version ", version->get<std::int64_t>(),
                            "; this rare-trt reads up to ", kFormatVersion,
                            ": install a newer rare-trt"));
  }
  if (*version == kFormatVersion) return check_seal(data);
  // Otherwise one byte of the version would make a sealed manifest one that needs no seal.
  if (values.contains("sha256")) refuse("manifest.json has a seal, which its format has not");
  // Version 2 added engines, version 3 INT8 and its calibration, version 4 the seal and what the
  // training scans look like, and they changed nothing else.
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
    *version = 4;
  }
}

const valijson::Schema& schema() {
  static const std::unique_ptr<const valijson::Schema> parsed = [] {
    const Json json = Json::parse(kManifestSchema);
    auto found = std::make_unique<valijson::Schema>();
    valijson::SchemaParser(valijson::SchemaParser::kDraft7)
        .populateSchema(valijson::adapters::NlohmannJsonAdapter(json), *found);
    return found;
  }();
  return *parsed;
}

void check_schema(const Json& values) {
  valijson::Validator validator(valijson::Validator::kStrongTypes);
  valijson::ValidationResults results;
  if (validator.validate(schema(), valijson::adapters::NlohmannJsonAdapter(values), &results)) {
    return;
  }
  std::string place, what = "it differs";
  valijson::ValidationResults::Error error;
  // The last one is the innermost.
  while (results.popError(error)) {
    place.clear();
    for (const std::string& part : error.context) place += part == "<root>" ? "manifest" : part;
    what = error.description;
  }
  refuse(text("manifest.json does not fit its schema (", place, ": ", what, ")"));
}

std::vector<std::string> strings(const Json& values) {
  return values.get<std::vector<std::string>>();
}

// A route's number: small, or it is no route of the package.
int route_number(const Json& value) {
  const auto number = value.get<std::int64_t>();
  if (number > std::numeric_limits<int>::max()) refuse(text("there is no route ", number));
  return static_cast<int>(number);
}

Dims dims(const Json& values) { return values.get<Dims>(); }

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
  const Json& network = values.at("network");
  if (network.contains("filters") && network.at("filters").is_number_integer()) {
    found.filters = network.at("filters").get<std::int64_t>();
  }
  return found;
}

Route route(const Json& values) {
  return {route_number(values.at("index")), values.at("spacing_mm"), values.at("native_band"),
          values.at("multiple"), values.at("profile").at("max")};
}

GraphEntry graph(const Json& values) {
  return {values.at("precision"), route_number(values.at("route")), values.at("file"),
          values.at("weights")};
}

EngineEntry engine(const Json& values) {
  const Json& options = values.at("options");
  EngineEntry found;
  found.backend = values.at("backend");
  found.precision = values.at("precision");
  found.route = route_number(values.at("route"));
  found.file = values.at("file");
  found.graph_sha256 = values.at("graph_sha256");
  found.library = values.at("library");
  found.platform = values.at("platform");
  if (!values.at("gpu").is_null()) found.gpu = values.at("gpu");
  found.compute_capabilities = strings(values.at("compute_capabilities"));
  found.options = {options.at("hardware_compatibility"), options.at("version_compatible"),
                   options.at("tf32"), options.at("static_shapes")};
  for (const auto& [name, shapes] : values.at("profile").items()) {
    found.profile[name] = {dims(shapes[0]), dims(shapes[1]), dims(shapes[2])};
  }
  return found;
}

GoldenEntry golden(const Json& values) {
  return {route_number(values.at("route")), values.at("scan"), values.at("labels"),
          values.at("max_disagreement").get<std::map<std::string, double>>()};
}

CalibrationEntry calibration(const Json& values) {
  CalibrationEntry found{route_number(values.at("route")), values.at("table"), {}};
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

Manifest read(const Json& values) {
  Manifest found;
  found.name = values.at("name");
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

std::string folder_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

// What the schema cannot say: entries that must agree with each other. Empty where they do.
class Agreement {
 public:
  explicit Agreement(const Manifest& manifest) : manifest_(manifest) {
    for (const auto& entry : manifest.routes) routes_.insert(entry.index);
    for (const auto& entry : manifest.graphs) typed_.emplace(entry.route, entry.precision);
    graphs_ = typed_;
    for (const auto& entry : manifest.engines) typed_.emplace(entry.route, entry.precision);
  }

  std::string fault(const Json& model) const {
    if (routes_.size() != manifest_.routes.size()) return "its routes name one twice";
    for (const std::string& found : {unknown_route(), missing_file(), unproven(), unfit()}) {
      if (!found.empty()) return found;
    }
    const std::size_t ranges = model.at("volume_range_mm3").size();
    const std::size_t labels = manifest_.model.labels.size() - 1;
    if (ranges != labels) return text(ranges, " volume ranges for ", labels, " labels");
    if (!limits_rise()) return "a lower limit is not below its upper one";
    if (!seen_per_channel(model)) {
      return text("what training saw is not there once per channel (",
                  manifest_.model.channels.size(), ")");
    }
    for (const auto& entry : manifest_.graphs) {
      if (folder_of(entry.file) != folder_of(entry.weights)) {
        return "a graph and its weights lie in different folders";
      }
    }
    return "";
  }

 private:
  using RoutePrecision = std::pair<int, std::string>;

  std::string unknown_route() const {
    std::vector<int> used;
    for (const auto& [route, precision] : typed_) used.push_back(route);
    for (const auto& entry : manifest_.golden) used.push_back(entry.route);
    for (const auto& entry : manifest_.calibration) used.push_back(entry.route);
    for (const int route : used) {
      if (routes_.count(route) == 0) return text("route ", route, " is named but not among them");
    }
    return "";
  }

  std::string missing_file() const {
    std::vector<std::string> named;
    for (const auto& entry : manifest_.graphs) {
      named.insert(named.end(), {entry.file, entry.weights});
    }
    for (const auto& entry : manifest_.engines) named.push_back(entry.file);
    for (const auto& entry : manifest_.calibration) named.push_back(entry.table);
    for (const auto& entry : manifest_.golden)
      named.insert(named.end(), {entry.scan, entry.labels});
    for (const std::string own : {"manifest.json", "manifest.sig"}) {
      if (manifest_.files.count(own) != 0) return own + " is among the files, which it describes";
    }
    for (const auto& name : named) {
      if (manifest_.files.count(name) == 0) return name + " is named but not among the files";
    }
    return "";
  }

  // Every graph and engine must have golden vectors of its route, each with a bound for it.
  std::string unproven() const {
    for (const auto& [route, precision] : typed_) {
      bool any = false;
      for (const auto& entry : manifest_.golden) {
        if (entry.route != route) continue;
        any = true;
        if (entry.max_disagreement.count(precision) == 0) {
          return "golden vector " + entry.scan + " has no bound for " + precision;
        }
      }
      if (!any) return text("no golden vector for route ", route, " in ", precision);
    }
    return "";
  }

  // What of the calibration does not fit the graphs and the golden vectors.
  std::string unfit() const {
    std::set<int> calibrated;
    for (const auto& entry : manifest_.calibration) {
      if (!calibrated.insert(entry.route).second) {
        return text("route ", entry.route, " was calibrated twice");
      }
      for (const auto& variant : entry.variants) {
        if (graphs_.count({entry.route, graph_precision(variant)}) == 0) {
          return text("route ", entry.route, " has a variant ", variant, " without its graph");
        }
        for (const auto& vector : manifest_.golden) {
          if (vector.route == entry.route && vector.max_disagreement.count(variant) == 0) {
            return text("no bound for ", variant, " on route ", entry.route);
          }
        }
      }
    }
    for (const auto& [route, precision] : graphs_) {
      if (precision == "int8" && calibrated.count(route) == 0) {
        return text("route ", route, " has an INT8 graph without its calibration");
      }
    }
    return "";
  }

  bool seen_per_channel(const Json& model) const {
    const auto seen = model.find("seen");
    if (seen == model.end() || seen->is_null()) return true;
    const std::size_t channels = manifest_.model.channels.size();
    const Json& routes = seen->at("routes");
    return seen->at("patterns").size() == channels &&
           std::all_of(routes.begin(), routes.end(),
                       [&](const Json& route) { return route.at("ranges").size() == channels; });
  }

  bool limits_rise() const {
    const auto rises = [](const std::array<double, 2>& pair) { return pair[0] < pair[1]; };
    return rises(manifest_.model.spacing_limits_mm) &&
           rises(manifest_.model.intensity.clip_percentiles) &&
           std::all_of(manifest_.routes.begin(), manifest_.routes.end(),
                       [&](const Route& route) { return rises(route.native_band); });
  }

  const Manifest& manifest_;
  std::set<int> routes_;
  std::set<RoutePrecision> graphs_, typed_;
};

Json parsed(std::string_view data) {
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

std::string Manifest::graph_sha256(const GraphEntry& graph) const {
  return sha256_hex(files.at(graph.file).sha256 + files.at(graph.weights).sha256);
}

bool Manifest::fp16_holds(int route) const {
  return std::all_of(calibration.begin(), calibration.end(), [&](const CalibrationEntry& entry) {
    const auto& held = entry.variants;
    return entry.route != route || std::find(held.begin(), held.end(), "fp16") != held.end();
  });
}

Manifest manifest_from_json(std::string_view data) {
  Json values = parsed(data);
  settle(values);
  upgrade(values, data);
  check_schema(values);
  Manifest manifest = read(values);
  const std::string fault = Agreement(manifest).fault(values.at("model"));
  if (!fault.empty()) refuse("manifest.json contradicts itself (" + fault + ")");
  return manifest;
}

std::string graph_precision(const std::string& arithmetic) {
  return arithmetic.substr(0, arithmetic.find('+'));
}

bool needs_bf16(const std::string& arithmetic) {
  return arithmetic.find("+bf16") != std::string::npos;
}

}  // namespace rare_trt
