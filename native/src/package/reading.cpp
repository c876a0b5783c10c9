#include "package/reading.h"

#include <algorithm>
#include <stdexcept>

#include "constants.h"
#include "errors.h"
#include "package/manifest_json.h"
#include "storage/files.h"
#include "text.h"

namespace rare_trt {
namespace {

namespace fs = std::filesystem;

std::string read_bounded(const fs::path& path, std::int64_t limit) {
  try {
    return read_file(path, limit);
  } catch (const fs::filesystem_error& error) {
    throw PackageError(text(path.string(), ": cannot be read (", error.code().message(),
                            "); expected a file of the package: install the package again"));
  }
}

const GraphEntry* find_graph(const Manifest& manifest, int route, const std::string& precision) {
  const auto found =
      std::find_if(manifest.graphs.begin(), manifest.graphs.end(), [&](const GraphEntry& entry) {
        return entry.route == route && entry.precision == precision;
      });
  return found == manifest.graphs.end() ? nullptr : &*found;
}

void check_no_link(const fs::path& folder, const std::string& name) {
  std::error_code unknown;
  if (fs::weakly_canonical(folder / name, unknown) == fs::canonical(folder, unknown) / name) return;
  throw PackageError(text((folder / name).string(),
                          ": is a link or lies behind one; expected a file in the package's own "
                          "folder: install the package again"));
}

}  // namespace

std::string Package::read(const std::string& name) const {
  const FileEntry& entry = manifest.files.at(name);
  const fs::path path = folder / name;
  check_no_link(folder, name);
  std::string data = read_bounded(path, entry.bytes);
  if (static_cast<std::int64_t>(data.size()) != entry.bytes || sha256_hex(data) != entry.sha256) {
    throw PackageError(text(path.string(),
                            ": is not the file the manifest names (SHA-256 or size differ); it was "
                            "damaged or tampered with: install the package again"));
  }
  return data;
}

const GraphEntry& Package::graph(int route, const std::string& precision) const {
  const GraphEntry* found = find_graph(manifest, route, precision);
  if (found != nullptr) return *found;
  throw PackageError(text(folder.string(), ": has no ", precision, " graph for route ", route,
                          ": build the package again"));
}

const GraphEntry& Package::portable_graph(int route) const {
  const GraphEntry* fp16 = find_graph(manifest, route, "fp16");
  return fp16 != nullptr && is_fp16_within_budget(manifest, route) ? *fp16 : graph(route, "fp32");
}

const Route& Package::route(int index) const {
  for (const Route& route : manifest.routes) {
    if (route.index == index) return route;
  }
  throw std::logic_error("no such route");
}

Package open_package(const fs::path& folder) {
  std::error_code unknown;
  if (!fs::is_directory(folder, unknown)) {
    throw PackageError(
        text(folder.string(), ": no such package; expected a folder: check the path"));
  }
  check_no_link(folder, "manifest.json");
  const std::string data = read_bounded(folder / "manifest.json", kMaxManifestBytes);
  try {
    return {folder, manifest_from_json(data), sha256_hex(data)};
  } catch (const PackageError& error) {
    throw PackageError(text(folder.string(), ": ", error.what()));
  }
}

}  // namespace rare_trt
