// Golden vectors: real scans that a session must answer as the reference network did.
#pragma once

#include "package/reading.h"
#include "sessions/session.h"
#include "storage/cache.h"

namespace rare_trt {

// Holds `session` to the golden vectors of `route`; throws BackendError where one differs.
//
// Vectors whose shapes the session was not built for are left out; one at least must be left. Each
// is run as often as the session changes its way of running.
void prove(Session& session, const Package& package, int route);

// `prove`, but for sessions that passed it on this machine before.
void prove_once(Session& session, const Package& package, int route, const Cache& cache);

}  // namespace rare_trt
