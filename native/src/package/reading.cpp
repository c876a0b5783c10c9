#include "package/reading.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "constants.h"
#include "errors.h"
#include "package/consistency.h"
#include "package/manifest_json.h"
#include "storage/files.h"
#include "storage/home.h"
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

std::string build_again(const fs::path& engines) {
  return text("remove ", engines.string(), " and build the engines again");
}

std::pair<Manifest, std::string> read_manifest(const fs::path& folder) {
  check_no_link(folder, "manifest.json");
  std::error_code unknown;
  if (fs::symlink_status(folder / "manifest.json", unknown).type() == fs::file_type::not_found) {
    throw PackageError(text(folder.string(),
                            ": is no package (it has no manifest.json); expected a folder "
                            "NAME.rare: check its name, or install the package again"));
  }
  const std::string data = read_bounded(folder / "manifest.json", kMaxManifestBytes);
  try {
    return {manifest_from_json(data), sha256_hex(data)};
  } catch (const PackageError& error) {
    throw PackageError(text(folder.string(), ": ", error.what()));
  }
}

// The hashes of all files but the engines, by name.
std::map<std::string, std::string> hashes_without_engines(const Manifest& manifest) {
  std::map<std::string, std::string> hashes;
  for (const auto& [name, entry] : manifest.files) hashes[name] = entry.sha256;
  for (const EngineEntry& engine : manifest.engines) hashes.erase(engine.file);
  return hashes;
}

// Adds the engines for `package` in the user's own folder. Throws PackageError where they are
// damaged, made for another package, or may be another user's.
void add_own_engines(Package& package) {
  const fs::path folder = engines_folder(package.manifest_sha256);
  std::error_code unknown;
  if (folder.empty() || !fs::is_regular_file(folder / "manifest.json", unknown)) return;
  const std::string remedy = build_again(folder);
  if (!is_private(folder, true)) {
    throw PackageError(text(folder.string(),
                            ": is another user's, or others may write to it, and engines are "
                            "programs: ",
                            remedy));
  }
  Manifest found;
  try {
    found = read_manifest(folder).first;
  } catch (const PackageError& error) {
    throw PackageError(text(error.what(), ", or ", remedy));
  }
  Manifest merged = package.manifest;
  std::set<std::string> own;
  for (const EngineEntry& engine : found.engines) {
    if (package.manifest.files.count(engine.file) != 0) continue;
    own.insert(engine.file);
    merged.engines.push_back(engine);
    merged.files[engine.file] = found.files.at(engine.file);
  }
  if (hashes_without_engines(found) != hashes_without_engines(package.manifest) ||
      first_fault(merged)) {
    throw PackageError(text(folder.string(), ": its engines are not those of the package in ",
                            package.folder.string(), ": ", remedy));
  }
  package.manifest = std::move(merged);
  package.engines_folder = folder;
  package.engine_files = std::move(own);
}

}  // namespace

std::string Package::read(const std::string& name) const {
  const FileEntry& entry = manifest.files.at(name);
  const bool is_own_engine = engine_files.count(name) != 0;
  const fs::path& where = is_own_engine ? engines_folder : folder;
  const fs::path path = where / name;
  check_no_link(where, name);
  std::string data = read_bounded(path, entry.bytes);
  if (static_cast<std::int64_t>(data.size()) != entry.bytes || sha256_hex(data) != entry.sha256) {
    throw PackageError(text(path.string(),
                            ": is not the file the manifest names (SHA-256 or size differ); it was "
                            "damaged or tampered with: ",
                            is_own_engine ? build_again(where) : "install the package again"));
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
  auto [manifest, sha256] = read_manifest(folder);
  Package package = {folder, std::move(manifest), std::move(sha256)};
  add_own_engines(package);
  return package;
}

fs::path engines_folder(const std::string& manifest_sha256) {
  const fs::path home = home_folder();
  return home.empty() ? home : home / "engines" / manifest_sha256;
}

}  // namespace rare_trt
