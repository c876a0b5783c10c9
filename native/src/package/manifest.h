// A package's manifest as types, read from JSON.
//
// rare_trt/manifest.schema.json, which is built into the library, describes the file; it is checked
// first, so that the types below are built from values of the right kind.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plan/routing.h"
#include "scan/field_of_view.h"
#include "scan/intensity.h"

namespace rare_trt {

// The newest format of the package that is read. All older ones are too.
constexpr int kFormatVersion = 4;

struct Model {
  std::vector<std::string> labels;  // names in order of value; 0 is the background
  std::vector<std::string> channels;
  double base_spacing_mm;
  std::array<double, 2> spacing_limits_mm;
  IntensityRule intensity;
  FieldOfView field_of_view_mm;
  std::optional<std::int64_t> filters;  // of the network's first level, where the record has them
};

// One route's graph at one precision; `weights` is its external data.
struct GraphEntry {
  std::string precision;
  int route;
  std::string file;
  std::string weights;
};

// What of an engine's making decides where it runs and which of several is taken.
struct BuilderOptions {
  std::string hardware_compatibility;
  bool version_compatible;
  bool tf32;
  bool static_shapes;
};

using Dims = std::vector<std::int64_t>;

// Smallest, typical and largest shape of an input.
using Shapes = std::array<Dims, 3>;

// One route's engine: what it was made from, with what, and what it runs on.
struct EngineEntry {
  std::string backend;
  std::string precision;
  int route;
  std::string file;
  std::string graph_sha256;  // stands for graph and weights: Manifest::graph_sha256
  std::string library;
  std::string platform;
  std::string gpu;  // that it was built on; empty: built without one
  std::vector<std::string> compute_capabilities;
  BuilderOptions options;
  std::map<std::string, Shapes> profile;
};

// A scan at a route's spacing and the labels the reference gives it, at base spacing.
struct GoldenEntry {
  int route;
  std::string scan;
  std::string labels;
  std::map<std::string, double> max_disagreement;  // by arithmetic
};

// The arithmetics that held a route's budget on a CPU, fastest first.
struct CalibrationEntry {
  int route;
  std::string table;
  std::vector<std::string> variants;
};

// What a file of the package must be.
struct FileEntry {
  std::string sha256;
  std::int64_t bytes;
};

// What the runtime needs of a manifest. Paths are relative to the package's folder.
struct Manifest {
  std::string name;
  Model model;
  std::vector<Route> routes;
  std::vector<GraphEntry> graphs;
  std::vector<EngineEntry> engines;
  std::vector<GoldenEntry> golden;
  std::vector<CalibrationEntry> calibration;
  std::map<std::string, FileEntry> files;

  // One hash for a graph together with its weights.
  std::string graph_sha256(const GraphEntry& graph) const;

  // Whether fp16 keeps the Dice budget on `route`, as far as calibration looked.
  bool fp16_holds(int route) const;
};

// The manifest in `data`; throws PackageError that names what is wrong.
Manifest manifest_from_json(std::string_view data);

// What a session computes in: its graph's precision, or on some CPUs the float parts in bf16.
std::string graph_precision(const std::string& arithmetic);
bool needs_bf16(const std::string& arithmetic);

}  // namespace rare_trt
