"""A progress bar for the build of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def show_progress(module: Any, config: Any, route: int) -> Iterator[list[BaseException]]:
    """Shows the progress of the library `module` on one engine as a bar while `config` is built.

    Yields a list that is filled with the exceptions raised meanwhile, such as an interrupt from the
    keyboard: they do not cross the library, and stop the build.
    """
    interrupts: list[BaseException] = []
    with tqdm(desc=f"route {route}", unit="step", total=0, leave=False) as bar:

        @contextmanager
        def collect() -> Iterator[None]:
            try:
                yield
            except BaseException as interrupt:
                interrupts.append(interrupt)

        # The class to derive from is known at run time only: there are two libraries.
        class Monitor(module.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                module.IProgressMonitor.__init__(self)

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                with collect():
                    bar.total = (bar.total or 0) + steps
                    bar.refresh()

            def step_complete(self, phase: str, step: int) -> bool:
                with collect():
                    bar.update()
                return not interrupts

            def phase_finish(self, phase: str) -> None:
                with collect():
                    bar.refresh()

        monitor = Monitor()
        config.progress_monitor = monitor
        yield interrupts
        config.progress_monitor = None
