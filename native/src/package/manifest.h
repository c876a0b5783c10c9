// A package's manifest as types. manifest_json.h reads it.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "plan/routing.h"
#include "scan/field_of_view.h"
#include "scan/intensity.h"
#include "scan/out_of_distribution.h"

namespace rare_trt {

struct Model {
  std::vector<std::string> labels;  // names in order of value; 0 is the background
  std::vector<std::string> channels;
  double base_spacing_mm;
  std::array<double, 2> spacing_limits_mm;
  IntensityRule intensity;
  FieldOfView field_of_view_mm;
  std::vector<std::array<double, 2>> volume_range_mm3;  // plausible volumes, from label 1 up
  std::optional<std::int64_t> filters;  // of the network's first level, where they are recorded
  // The training distribution: to how many channels each of its tables refers; empty where unknown.
  std::vector<std::size_t> distribution_channels;
  std::vector<RouteLabelDistribution> label_distribution;  // empty where unknown
};

// One route's graph at one precision; `weights` is the file of its external data.
struct GraphEntry {
  std::string precision;
  int route;
  std::string file;
  std::string weights;
};

// The builder options that decide where an engine runs and which of several is preferred.
struct BuilderOptions {
  std::string hardware_compatibility;
  bool version_compatible;
  bool tf32;
  bool static_shapes;
};

using Dims = std::vector<std::int64_t>;

// Smallest, typical and largest shape of an input.
using Shapes = std::array<Dims, 3>;

// One route's engine: its source, the library that built it, and what it runs on.
struct EngineEntry {
  std::string backend;
  std::string precision;
  int route;
  std::string file;
  std::string graph_sha256;  // of graph and weights: Manifest::graph_sha256
  std::string library;
  std::string platform;
  std::string gpu;  // the one it was built on; empty: built without a GPU
  std::vector<std::string> compute_capabilities;
  BuilderOptions options;
  std::map<std::string, Shapes> profile;
};

// A golden vector: a scan at a route's spacing and the reference's labels at base spacing.
struct GoldenEntry {
  int route;
  std::string scan;
  std::string labels;
  std::map<std::string, double> max_disagreement;  // by arithmetic
};

// The arithmetics that keep a route's Dice budget on a CPU, fastest first.
struct CalibrationEntry {
  int route;
  std::string table;
  std::vector<std::string> variants;
};

// SHA-256 and size of a file of the package.
struct FileEntry {
  std::string sha256;
  std::int64_t bytes;
};

// The parts of a manifest that the runtime needs. Paths are relative to the package's folder.
struct Manifest {
  Model model;
  std::vector<Route> routes;
  std::vector<GraphEntry> graphs;
  std::vector<EngineEntry> engines;
  std::vector<GoldenEntry> golden;
  std::vector<CalibrationEntry> calibration;
  std::map<std::string, FileEntry> files;

  // One SHA-256 for a graph together with its weights.
  std::string graph_sha256(const GraphEntry& graph) const;
};

// Whether fp16 keeps the Dice budget on `route`; true where no calibration measured it.
bool is_fp16_within_budget(const Manifest& manifest, int route);

// The precision of the graph that is computed in `arithmetic`, such as fp16 for "fp16+bf16".
std::string graph_precision(const std::string& arithmetic);

// Whether the CPU must compute the float parts in bf16.
bool needs_bf16(const std::string& arithmetic);

}  // namespace rare_trt
