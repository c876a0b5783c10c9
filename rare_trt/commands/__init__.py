"""The commands of `rare-trt`: each module adds its parser and runs on the parsed options."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypeAlias

from rare_trt.errors import BackendError

if TYPE_CHECKING:
    Parsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def missing_extra(error: ImportError, extra: str) -> BackendError:
    """What to tell a user whose install lacks the packages that a command needs."""
    return BackendError(
        f"this command needs the package {error.name}, which the base install leaves out: "
        f"pip install 'rare-trt[{extra}]'"
    )
