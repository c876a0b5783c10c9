"""The fuzzing targets on their corpus and on mutations of it, without a fuzzer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
TARGETS = sorted(path.stem for path in (REPOSITORY / "fuzz").glob("*.py"))
MUTATIONS = 2000

One = Callable[[bytes], None]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> tuple[One, list[bytes]]:
    """A target's function and its corpus."""
    name: str = request.param
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "fuzz" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    corpus = sorted((REPOSITORY / "tests" / "corpus" / name).iterdir())
    return module.one, [path.read_bytes() for path in corpus]


def test_the_corpus_is_small_and_finds_no_defect(target: tuple[One, list[bytes]]) -> None:
    one, corpus = target
    assert corpus
    assert sum(map(len, corpus)) < 100_000
    for data in corpus:
        one(data)


def test_mutations_of_the_corpus_find_no_defect(target: tuple[One, list[bytes]]) -> None:
    """Bits flipped, bytes set to what breaks things, runs taken out or copied elsewhere."""
    one, corpus = target
    rng = np.random.default_rng(0)
    for _ in range(MUTATIONS):
        data = bytearray(corpus[rng.integers(len(corpus))])
        for _ in range(rng.integers(1, 5)):
            mutate(data, rng)
        one(bytes(data))


def mutate(data: bytearray, rng: np.random.Generator) -> None:
    if not data:
        data += rng.bytes(4)
    place, size = int(rng.integers(len(data))), int(rng.integers(1, 9))
    match rng.integers(4):
        case 0:
            data[place] ^= 1 << int(rng.integers(8))
        case 1:
            data[place : place + size] = bytes(rng.choice([0, 1, 127, 128, 255], size).tolist())
        case 2:
            del data[place : place + size]
        case _:
            data[place:place] = data[int(rng.integers(len(data))) :][:size]
