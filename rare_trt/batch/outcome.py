"""The outcome of one scan of several, and the lines that are printed on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from rare_trt.errors import RareTrtError
from rare_trt.jobs import Job, ScanSummary

# Errors of one scan of several that do not end the others.
FAULTS: Final = (RareTrtError, OSError, MemoryError)

FLAGGED_BEFORE: Final = "flagged when it was segmented"


@dataclass(frozen=True)
class Failure:
    """A scan that could not be segmented, and why, in one sentence that names a file."""

    reason: str


@dataclass(frozen=True)
class Skip:
    """A scan that was not segmented again, and why; `is_flagged` where a table of the run that
    segmented it has flags."""

    reason: str
    is_flagged: bool = False


Outcome: TypeAlias = ScanSummary | Failure | Skip


def failure(job: Job, error: BaseException) -> Failure:
    """The failure of a job that one of FAULTS has ended."""
    if isinstance(error, MemoryError):
        why = str(error) or "for a small block"
        return Failure(
            f"{job.scan}: not enough memory ({why}): free memory, or lower --memory-limit"
        )
    return Failure(str(error))


def outcome_line(job: Job, outcome: Outcome) -> str:
    """One line on a scan: the volumes of its labels and its flags, or why there are none."""
    if isinstance(outcome, Failure):
        return f"not segmented: {outcome.reason}"
    if isinstance(outcome, Skip):
        flagged = f"; {FLAGGED_BEFORE}" if outcome.is_flagged else ""
        return f"{job.scan}: skipped, {outcome.reason}{flagged}"
    flags = f": {'; '.join(outcome.flags)}" if outcome.flags else ""
    return f"{job.scan}: {volumes_text(outcome.volumes_mm3)}; {_flag_count(outcome)}{flags}"


def volumes_text(volumes_mm3: Mapping[str, float]) -> str:
    """'anterior hippocampus 1416 mm3, posterior hippocampus 1395 mm3'."""
    return ", ".join(f"{name} {mm3:.0f} mm3" for name, mm3 in volumes_mm3.items())


def flagged_lines(outcomes: Mapping[Job, Outcome]) -> list[str]:
    """One line per scan that has flags."""
    lines = []
    for job, outcome in outcomes.items():
        if isinstance(outcome, ScanSummary) and outcome.flags:
            lines.append(f"{job.scan}: {_flag_count(outcome)}")
        if isinstance(outcome, Skip) and outcome.is_flagged:
            lines.append(f"{job.scan}: {FLAGGED_BEFORE}")
    return lines


def _flag_count(summary: ScanSummary) -> str:
    count = len(summary.flags)
    return f"{count or 'no'} {'flag' if count == 1 else 'flags'}"
