"""Known vulnerabilities of TensorRT: NVIDIA's bulletins as a table, and what they say of a version.

Bulletins 5836 and 5855, in github.com/NVIDIA/product-security under 2026.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Version: TypeAlias = tuple[int, int, int]

State: TypeAlias = Literal["affected", "fixed", "unknown"]

# When NVIDIA's bulletins were last looked through.
LOOKED_AT: Final = "October 2026"


@dataclass(frozen=True)
class Advisory:
    """A vulnerability of every release below `affected_below`, gone from `fixed_in` on.

    Of releases between the two NVIDIA says nothing. `published` is a date, year first.
    """

    cve: str
    affected_below: Version
    fixed_in: Version
    what: str
    published: str

    def state(self, version: str) -> State:
        """What is known of TensorRT `version`; builds of one release are alike."""
        release = _release(version)
        if release is None:
            return "unknown"
        if release >= self.fixed_in:
            return "fixed"
        return "affected" if release < self.affected_below else "unknown"


# "Up to 10.16.1" in the bulletin is below 10.16.2 here, so that builds of 10.16.1 are in it.
ADVISORIES: Final = (
    Advisory(
        "CVE-2026-24188",
        (10, 16, 1),
        (10, 16, 1),
        "write out of bounds: data may be changed, or the program stopped",
        "2026-05-19",
    ),
    Advisory(
        "CVE-2026-24268",
        (10, 16, 2),
        (11, 0, 0),
        "overflow of a buffer on the heap: code may be run",
        "2026-07-14",
    ),
    Advisory(
        "CVE-2026-24238",
        (10, 16, 2),
        (11, 0, 0),
        "array index not checked: code may be run",
        "2026-07-14",
    ),
    Advisory(
        "CVE-2026-24272",
        (10, 16, 2),
        (11, 0, 0),
        "overflow of a buffer on the heap: code may be run",
        "2026-07-14",
    ),
    Advisory(
        "CVE-2026-24227",
        (10, 16, 2),
        (11, 0, 0),
        "untrusted data deserialised: code may be run",
        "2026-07-14",
    ),
)


def advisories(version: str) -> list[tuple[Advisory, State]]:
    """The vulnerabilities that TensorRT `version` has, or may have."""
    states = [(advisory, advisory.state(version)) for advisory in ADVISORIES]
    return [(advisory, state) for advisory, state in states if state != "fixed"]


def _release(version: str) -> Version | None:
    """Major, minor and patch of a version, compared as numbers; None where it has no such."""
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?(?:\.\d+)*", version)
    if found is None:
        return None
    major, minor, patch = (int(part or 0) for part in found.groups())
    return major, minor, patch
