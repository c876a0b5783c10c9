"""Whether this machine is quiet enough for timings, for scripts: one sentence and exit 1 if not.

python benchmarks/quiet.py
"""

from __future__ import annotations

from rare_trt.bench import machine_load
from rare_trt.errors import RareTrtError


def require_quiet(anyway: bool) -> str:
    """One line on the load by other processes, to be printed with the figures.

    Ends the program with one sentence where that is too much or unknown, unless `anyway`.
    """
    try:
        return machine_load.require_quiet(anyway)
    except RareTrtError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    print(require_quiet(anyway=False))
