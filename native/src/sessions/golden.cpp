#include "sessions/golden.h"

#include <algorithm>

#include "errors.h"
#include "scan/nifti.h"
#include "sessions/run.h"
#include "text.h"
#include "version.h"

namespace rare_trt {
namespace {

// The share of voxels with another label than `truth`, whose bytes are in the order of NIfTI.
double disagreement(const std::vector<std::uint8_t>& labels, const NiftiVolume& truth) {
  const auto [ni, nj, nk] = truth.grid.shape();
  std::int64_t different = 0;
  auto label = labels.begin();
  for (std::int64_t i = 0; i < ni; ++i) {
    for (std::int64_t j = 0; j < nj; ++j) {
      for (std::int64_t k = 0; k < nk; ++k) {
        different += *label++ != truth.bytes[static_cast<std::size_t>((k * nj + j) * ni + i)];
      }
    }
  }
  return static_cast<double>(different) / static_cast<double>(labels.size());
}

// The largest disagreement over the runs of `session`.
double largest_disagreement(Session& session, const Package& package, const GoldenEntry& entry) {
  const Model& model = package.manifest.model;
  const Route& route = package.route(entry.route);
  const NiftiVolume volume = volume_from_bytes(package.read(entry.scan), entry.scan);
  const NiftiVolume truth = volume_from_bytes(package.read(entry.labels), entry.labels);
  if (volume.channels != static_cast<std::int64_t>(model.channels.size()) || truth.channels != 1) {
    throw PackageError(text(entry.scan, ": has ", volume.channels, " channels; expected ",
                            model.channels.size(), ": build the package again"));
  }
  const PreparedScan scan = {normalise(volume.voxels(), model.intensity),
                             plan_resampling(volume.grid, route, truth.grid), route.max_shape};
  double largest = 0;
  for (std::int64_t run = 0; run < session.golden_runs; ++run) {
    Timings ignored;
    const auto labels = run_tiles(session, scan, static_cast<int>(model.labels.size()), ignored);
    largest = std::max(largest, disagreement(labels, truth));
  }
  return largest;
}

}  // namespace

void check_golden_vectors(Session& session, const Package& package, int route) {
  const std::string name = session.backend + " " + session.arithmetic;
  int checked = 0;
  for (const GoldenEntry& entry : package.manifest.golden) {
    if (entry.route != route) continue;
    const double bound = entry.max_disagreement.at(session.arithmetic);
    double share = 0;
    try {
      share = largest_disagreement(session, package, entry);
    } catch (const ShapeError&) {
      continue;
    }
    ++checked;
    if (!(share <= bound)) {
      throw BackendError(
          text(name, " labels ", number(share * 100, 3), "% of the voxels of golden vector ",
               entry.scan, " differently than the package (at most ", number(bound * 100, 3),
               "% may differ), so it is not used: run `rare-trt verify` on another machine; where "
               "it fails there too, build the package again, else report the output of `rare-trt "
               "doctor` here"));
    }
  }
  if (checked == 0) {
    throw BackendError(text(name, " accepts the shapes of no golden vector of route ", route,
                            ", so its labels cannot be verified: build the engine again"));
  }
}

void check_golden_vectors_once(Session& session, const Package& package, int route,
                               const Cache& cache) {
  // The manifest names everything else that the labels depend on, the vectors included. The first
  // part differs from the Python runtime's: each runtime checks itself.
  const Cache::Key key = {"checked natively", session.identity(), package.manifest_sha256,
                          std::to_string(route), kVersion};
  if (cache.load(key)) return;
  check_golden_vectors(session, package, route);
  cache.store(key, "");
}

}  // namespace rare_trt
