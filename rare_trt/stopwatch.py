"""Where the time went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Stopwatch:
    """Adds the milliseconds spent in each named stage to `timings_ms`."""

    def __init__(self, timings_ms: dict[str, float] | None = None) -> None:
        self.timings_ms: dict[str, float] = {} if timings_ms is None else timings_ms

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        spent = (perf_counter() - start) * 1e3
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + spent
