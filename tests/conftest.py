"""What every test may use: real data outside the repository, the examples, a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans that is shared between checkouts and not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real scans in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def examples() -> Path:
    """The example scans that ship with the repository."""
    return REPOSITORY / "examples"


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole run: a compiled model is slow to make and safe to share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps tests away from the user's own cache."""
    monkeypatch.setenv("RARE_TRT_CACHE", str(cache_folder))
    yield


@pytest.fixture(scope="session")
def tiny_package_folder() -> Path:
    """A whole package of two routes and 600 kB, written once by format version 1."""
    return REPOSITORY / "tests" / "data" / "tiny_v1.rare"


@pytest.fixture(scope="session")
def tiny_scan(examples: Path) -> Path:
    """A real scan that the small package takes."""
    return examples / "hippocampus_1mm.nii.gz"
