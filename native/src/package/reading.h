// The package: one folder with manifest.json and the files it lists with their SHA-256.
#pragma once

#include <filesystem>
#include <set>
#include <string>

#include "package/manifest.h"

namespace rare_trt {

// An opened package. Of its files only the manifest has been read.
//
// `manifest_sha256` is that of the file in the package's folder. Where engines for it lie in
// `engines_folder`, the user's own, `manifest` lists them too, and `engine_files` names them.
struct Package {
  std::filesystem::path folder;
  Manifest manifest;
  std::string manifest_sha256;
  std::filesystem::path engines_folder = {};
  std::set<std::string> engine_files = {};

  // The file `name`, read once and verified against its hash; throws PackageError where it differs.
  // Parsers get the verified bytes, never the path.
  std::string read(const std::string& name) const;

  // The graph of `route` at `precision`.
  const GraphEntry& graph(int route, const std::string& precision) const;

  // The graph of `route` that runs on every CPU: fp16; float32 in older packages without fp16, and
  // where calibration found that fp16 exceeds the Dice budget.
  const GraphEntry& portable_graph(int route) const;

  const Route& route(int index) const;
};

// The user's own folder for the engines of the package whose manifest has that hash; empty where
// the user has none. `rare-trt build` writes it.
std::filesystem::path engines_folder(const std::string& manifest_sha256);

// The package in `folder`, with the engines for it in the user's own folder; throws PackageError.
Package open_package(const std::filesystem::path& folder);

}  // namespace rare_trt
