#include "sessions/golden.h"

#include <algorithm>

#include "errors.h"
#include "scan/nifti.h"
#include "sessions/run.h"
#include "text.h"
#include "version.h"

namespace rare_trt {
namespace {

// The largest share of voxels that `session` labels otherwise in any of its ways of running.
double disagreement(Session& session, const Package& package, const GoldenEntry& entry) {
  const Model& model = package.manifest.model;
  const Route& route = package.route(entry.route);
  const GoldenVolume scan = golden_volume(package.read(entry.scan), entry.scan);
  const GoldenVolume truth = golden_volume(package.read(entry.labels), entry.labels);
  if (scan.channels != static_cast<std::int64_t>(model.channels.size()) || truth.channels != 1) {
    throw PackageError(text(entry.scan, ": has ", scan.channels, " channels; expected ",
                            model.channels.size(), ": build the package again"));
  }
  const Image image = normalised(scan.voxels(), model.intensity);
  const Plan steps = plan(scan.grid, route, truth.grid);
  const auto [ni, nj, nk] = truth.grid.shape();
  double worst = 0;
  for (int run = 0; run < session.proof_runs; ++run) {
    Timings ignored;
    const auto answer = answered(session, image, steps, route.max_shape,
                                 static_cast<int>(model.labels.size()), ignored);
    std::int64_t different = 0;
    auto label = answer.begin();
    for (std::int64_t i = 0; i < ni; ++i) {
      for (std::int64_t j = 0; j < nj; ++j) {
        for (std::int64_t k = 0; k < nk; ++k) {
          different += *label++ != truth.bytes[static_cast<std::size_t>((k * nj + j) * ni + i)];
        }
      }
    }
    worst = std::max(worst, static_cast<double>(different) / static_cast<double>(answer.size()));
  }
  return worst;
}

}  // namespace

void prove(Session& session, const Package& package, int route) {
  const std::string name = session.backend + " " + session.arithmetic;
  int proven = 0;
  for (const GoldenEntry& entry : package.manifest.golden) {
    if (entry.route != route) continue;
    const double bound = entry.max_disagreement.at(session.arithmetic);
    double share = 0;
    try {
      share = disagreement(session, package, entry);
    } catch (const ShapeError&) {
      continue;
    }
    ++proven;
    if (!(share <= bound)) {
      throw BackendError(
          text(name, " gives ", number(share * 100, 3),
               "% other labels than the package's golden vector ", entry.scan, " (at most ",
               number(bound * 100, 3),
               "% may differ): this machine's answers cannot be trusted; report what "
               "`rare-trt doctor` prints"));
    }
  }
  if (proven == 0) {
    throw BackendError(text(name, " takes none of the golden vectors of route ", route,
                            ", so its answers cannot be checked: build the engine again"));
  }
}

void prove_once(Session& session, const Package& package, int route, const Cache& cache) {
  // The manifest names everything else that the answer hangs on, the vectors included. What the
  // Python runtime proved was not this library.
  const Cache::Key key = {"proved natively", session.identity(), package.manifest_sha256,
                          std::to_string(route), kVersion};
  if (cache.load(key)) return;
  prove(session, package, route);
  cache.store(key, "");
}

}  // namespace rare_trt
