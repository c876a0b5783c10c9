"""Whether this machine is quiet enough for timings: what its other processes take of its CPUs."""

from __future__ import annotations

import os
from pathlib import Path
from time import sleep
from typing import Final

from rare_trt.errors import RareTrtError

STAT: Final = Path("/proc/stat")
SECONDS: Final = 1.0

# In units of one CPU. A desktop at rest takes a few hundredths.
MAX_LOAD: Final = 0.1


def require_quiet(anyway: bool) -> str:
    """One line on the load by other processes, to be printed with the figures.

    Raises RareTrtError where they take more than MAX_LOAD, or where that is unknown, unless
    `anyway`.
    """
    try:
        load = load_of_others()
    except OSError:
        line = f"the load of other processes is unknown: {STAT} cannot be read"
        is_quiet = False
    else:
        line = f"other processes take {load:.2f} of {os.cpu_count()} CPUs"
        is_quiet = load <= MAX_LOAD
    if is_quiet or anyway:
        return line
    raise RareTrtError(
        f"{line}; expected at most {MAX_LOAD:g} for timings that can be trusted: stop them, or "
        "pass --anyway to see figures of a loaded machine"
    )


def load_of_others() -> float:
    """How many CPUs other processes keep busy, over a second in which this one sleeps."""
    before = _busy_ticks()
    sleep(SECONDS)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / SECONDS


def _busy_ticks() -> int:
    # user, nice, system, idle, iowait, irq, softirq, steal: all but the two of idleness.
    ticks = [int(field) for field in STAT.read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4]
