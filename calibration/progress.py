"""One progress bar over all the steps of a command, of which more may be found on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


class Steps:
    """A bar named `title` over `expected` steps."""

    def __init__(self, title: str, expected: int) -> None:
        self._expected = expected
        self._bar = tqdm(total=expected, desc=title, unit="step")

    def expect(self, more: int) -> None:
        """Adds `more` steps to the total."""
        self._expected += more
        self._bar.total = self._expected
        self._bar.refresh()

    def each(self, items: Iterable[Item], description: str) -> Iterator[Item]:
        """Yields `items`; every one is a step, during which the bar shows `description`."""
        for item in items:
            with self.one(description):
                yield item

    @contextmanager
    def one(self, description: str) -> Iterator[None]:
        """One step, during which the bar shows `description`; it counts where nothing is raised."""
        self._bar.set_postfix_str(description)
        yield
        self._bar.update()

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.set_postfix_str("")
        self._bar.close()
