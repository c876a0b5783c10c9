// The package: one folder with manifest.json and files, each held to its SHA-256.
#pragma once

#include <filesystem>
#include <string>

#include "package/manifest.h"

namespace rare_trt {

// An opened package. Nothing but the manifest has been read yet.
struct Package {
  std::filesystem::path folder;
  Manifest manifest;
  std::string manifest_sha256;

  // The file `name`, read once and held to its hash; throws PackageError otherwise. What is
  // returned is what was hashed: parsers get these bytes, never the path.
  std::string read(const std::string& name) const;

  // The graph of `route` at `precision`.
  const GraphEntry& graph(int route, const std::string& precision) const;

  // The graph of `route` that runs anywhere: fp16; float32 in packages from before it, and where
  // calibration found that fp16 does not hold the Dice budget.
  const GraphEntry& portable_graph(int route) const;

  const Route& route(int index) const;
};

// The package in `folder`; throws PackageError.
Package open_package(const std::filesystem::path& folder);

}  // namespace rare_trt
