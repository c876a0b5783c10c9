"""Known vulnerabilities of TensorRT, from NVIDIA's bulletins, and whether they affect a version.

Bulletins 5836 and 5855, in github.com/NVIDIA/product-security under 2026.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Version: TypeAlias = tuple[int, int, int]

State: TypeAlias = Literal["affected", "fixed", "unknown"]

# Month in which this table was last compared with NVIDIA's bulletins.
REVIEWED: Final = "October 2026"


@dataclass(frozen=True)
class Advisory:
    """A vulnerability of every release below `affected_below`, fixed from `fixed_in` on.

    The bulletins do not mention the releases between the two. `published` is a date, year first.
    """

    cve: str
    affected_below: Version
    fixed_in: Version
    published: str
    impact: str

    def state(self, version: str) -> State:
        """Returns whether TensorRT `version` is affected; all builds of a release count as one."""
        release = _release(version)
        if release is None:
            return "unknown"
        if release >= self.fixed_in:
            return "fixed"
        return "affected" if release < self.affected_below else "unknown"


# "Up to 10.16.1" in a bulletin is below 10.16.2 here, so that it covers all builds of 10.16.1.
_BULLETIN_5836: Final = ((10, 16, 1), (10, 16, 1), "2026-05-19")
_BULLETIN_5855: Final = ((10, 16, 2), (11, 0, 0), "2026-07-14")

ADVISORIES: Final = (
    Advisory(
        "CVE-2026-24188",
        *_BULLETIN_5836,
        "out-of-bounds write: changed data, denial of service",
    ),
    Advisory("CVE-2026-24268", *_BULLETIN_5855, "heap buffer overflow: code execution"),
    Advisory("CVE-2026-24238", *_BULLETIN_5855, "array index not checked: code execution"),
    Advisory("CVE-2026-24272", *_BULLETIN_5855, "heap buffer overflow: code execution"),
    Advisory("CVE-2026-24227", *_BULLETIN_5855, "untrusted data deserialised: code execution"),
)


def advisories(version: str) -> list[tuple[Advisory, State]]:
    """Returns the vulnerabilities that TensorRT `version` has or may have."""
    states = [(advisory, advisory.state(version)) for advisory in ADVISORIES]
    return [(advisory, state) for advisory, state in states if state != "fixed"]


def _release(version: str) -> Version | None:
    """Returns major, minor and patch of `version`; None where it is not made of such numbers."""
    found = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?(?:\.\d+)*", version)
    if found is None:
        return None
    major, minor, patch = (int(part or 0) for part in found.groups())
    return major, minor, patch
