// Golden vectors: real scans whose reference labels a session must reproduce.
#pragma once

#include "package/reading.h"
#include "sessions/session.h"
#include "storage/cache.h"

namespace rare_trt {

// Verifies `session` against the golden vectors of `route`; throws BackendError where one differs
// by more than its bound.
//
// Vectors whose shapes the session was not built for are skipped; at least one must remain. Each is
// run `golden_runs` times.
void check_golden_vectors(Session& session, const Package& package, int route);

// `check_golden_vectors`, skipped for sessions that passed it on this machine before.
void check_golden_vectors_once(Session& session, const Package& package, int route,
                               const Cache& cache);

}  // namespace rare_trt
