"""Whole heads for the head stage: read from folders, brought to RAS at base spacing, labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rare_trt.errors import ScanError
from rare_trt.evaluation.cases import CaseFiles, find_cases
from rare_trt.scan.geometry import Canonical, Grid
from rare_trt.scan.nifti import read_scan
from rare_trt.scan.validation import grid_difference
from rare_trt.storage.naming import is_scan_name, stem
from rare_trt.training.head_labels import (
    AIR,
    BY_INTENSITY,
    INDEX,
    Protocol,
    head_labels,
    load_protocol,
)

# Of the image's range: what is darker is air, outside of labelled tissue.
AIR_SHARE = 0.04

# Label maps of spacings that differ from a whole part of the base spacing by more than this share
# are not averaged but refused.
WHOLE = 0.02


# Heads held out of the first folder of heads, for validation and for test.
HELD_OUT = (15, 15)

PARTS = ("training", "validation", "test")


@dataclass(frozen=True, eq=False)
class HeadCase:
    """A labelled head, axes in canonical order, [i, j, k] on `grid` at about base spacing.

    `image` is float32 from about 0 to 1 (None of a label map without an image), `labels` are those
    of the head stage and `tissues` what an image is synthesised from (`head_labels.TISSUES`).
    """

    name: str
    image: NDArray[np.float32] | None
    labels: NDArray[np.uint8]
    tissues: NDArray[np.uint8]
    grid: Grid


@dataclass(frozen=True)
class HeadSource:
    """A folder of heads and the protocol of its label maps.

    Either images/ and labels/ of equal names, or NAME.nii.gz beside NAME_PROTOCOL.nii.gz (protocol
    in capitals), or label maps alone.
    """

    folder: Path
    protocol: str

    @classmethod
    def from_text(cls, text: str) -> HeadSource:
        """`FOLDER=PROTOCOL` as the command line has it; raises ScanError for anything else."""
        folder, equals, protocol = text.rpartition("=")
        if not equals:
            raise ScanError(f"{text!r} is no source of heads; expected FOLDER=PROTOCOL")
        return cls(Path(folder), protocol)

    def files(self) -> list[tuple[str, Path | None, Path]]:
        """Name, image (None: label map alone) and label map of each head, sorted by name."""
        if (self.folder / "images").is_dir():
            cases: list[CaseFiles] = find_cases(self.folder)
            return [(one.name, one.image, one.labels) for one in cases]
        paths = sorted(path for path in self.folder.glob("*") if is_scan_name(path))
        ending = f"_{Path(self.protocol).stem.upper()}"
        maps = {stem(path): path for path in paths if stem(path).endswith(ending)}
        if not maps:
            return [(stem(path), None, path) for path in paths]
        images = [path for path in paths if stem(path) + ending in maps]
        return [(stem(path), path, maps[stem(path) + ending]) for path in images]


def load_heads(
    sources: Sequence[HeadSource],
    base_spacing_mm: float,
    only: Sequence[str] | None = None,
) -> list[HeadCase]:
    """All heads of `sources` in memory, of those named `only` if given, with a progress bar."""
    wanted = [
        (source, files)
        for source in sources
        for files in source.files()
        if only is None or files[0] in only
    ]
    if not wanted:
        raise ScanError("no labelled heads in the folders; expected scans and label maps")
    protocols = {source.protocol: load_protocol(source.protocol) for source in sources}
    return [
        load_head(*files, protocols[source.protocol], base_spacing_mm)
        for source, files in tqdm(wanted, "reading", unit="head", mininterval=5.0)
    ]


def load_head(
    name: str, image: Path | None, labels: Path, protocol: Protocol, base_spacing_mm: float
) -> HeadCase:
    """One head; raises ScanError where labels and image do not lie on one grid."""
    truth = read_scan(labels).volume
    canonical = Canonical(truth.grid)
    numbers = canonical.from_scan(truth.voxels).astype(np.int32)
    grid, tissues = canonical.grid, protocol.tissue_of(numbers)
    found = head_labels(numbers, tissues, protocol, grid.spacing_mm)
    voxels = None
    if image is not None:
        scan = read_scan(image).volume
        difference = grid_difference(scan.grid, truth.grid)
        if difference is not None:
            raise ScanError(f"{labels}: lies on another grid than its scan ({difference})")
        voxels = unit_range(canonical.from_scan(scan.voxels).astype(np.float32))
    factor = whole_factor(grid, base_spacing_mm, labels)
    if factor > 1:
        if voxels is not None:
            voxels = _mean_of_blocks(voxels, factor)
        # Together, so that a voxel is hippocampus in both or in neither.
        both = majority_of_blocks(tissues * np.uint8(4) + found, factor)
        tissues, found = both // np.uint8(4), both % np.uint8(4)
        i, j, k = found.shape
        si, sj, sk = (s * factor for s in grid.spacing_mm)
        part = grid.box((0, 0, 0), (i * factor, j * factor, k * factor))
        grid = part.regrid((si, sj, sk), (i, j, k))
    if voxels is not None:
        tissues = tissues_by_intensity(voxels, tissues)
    return HeadCase(name, voxels, found, tissues, grid)


def load_training_heads(
    sources: Sequence[HeadSource], base_spacing_mm: float, seed: int
) -> tuple[list[HeadCase], list[str]]:
    """All heads of `sources` but for those held out of the first one, and the names of these."""
    first = [name for name, _, _ in sources[0].files()]
    _, validation, test = split_heads(first, HELD_OUT, seed)
    held_out = {*validation, *test}
    names = [n for source in sources for n, _, _ in source.files() if n not in held_out]
    return load_heads(sources, base_spacing_mm, names), sorted(held_out)


def halve(head: HeadCase) -> HeadCase:
    """`head` with voxels of twice the spacing: the image averaged, labels and tissues those that
    most of a voxel has."""
    image = None if head.image is None else _mean_of_blocks(head.image, 2)
    both = majority_of_blocks(head.tissues * np.uint8(4) + head.labels, 2)
    i, j, k = both.shape
    si, sj, sk = (2 * s for s in head.grid.spacing_mm)
    grid = head.grid.box((0, 0, 0), (2 * i, 2 * j, 2 * k)).regrid((si, sj, sk), (i, j, k))
    return HeadCase(head.name, image, both % np.uint8(4), both // np.uint8(4), grid)


def unit_range(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The voxels with their 99.8th percentile at 1 and their 0.5th at 0."""
    low, high = np.percentile(voxels, (0.5, 99.8))
    scaled: NDArray[np.float32] = ((voxels - low) / max(float(high - low), 1e-6)).astype(np.float32)
    return scaled


def whole_factor(grid: Grid, base_spacing_mm: float, path: Path) -> int:
    """How many voxels per axis make one of base spacing; raises ScanError where no whole number."""
    factor = max(1, round(base_spacing_mm / float(np.mean(grid.spacing_mm))))
    off = np.abs(np.array(grid.spacing_mm) * factor / base_spacing_mm - 1.0).max()
    if off > WHOLE:
        spacing = " x ".join(f"{s:.4g}" for s in grid.spacing_mm)
        raise ScanError(
            f"{path}: voxels of {spacing} mm; expected {base_spacing_mm:g} mm or a whole part of "
            "it: resample the head"
        )
    return factor


def majority_of_blocks(values: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The commonest value of each block of factor³ voxels; of equals the smallest. What does not
    fill a block at the end is left out."""
    i, j, k = (n // factor for n in values.shape)
    f = factor
    blocks = values[: i * f, : j * f, : k * f].reshape(i, f, j, f, k, f)
    flat = np.sort(blocks.transpose(0, 2, 4, 1, 3, 5).reshape(i, j, k, f**3), axis=3)
    best, most = flat[..., 0].copy(), np.zeros((i, j, k), np.uint8)
    run = np.zeros((i, j, k), np.uint8)
    for at in range(f**3):
        same = flat[..., at] == flat[..., at - 1] if at else np.zeros((i, j, k), bool)
        run = np.where(same, run + 1, 1).astype(np.uint8)
        better = run > most
        best[better], most[better] = flat[..., at][better], run[better]
    return best


def tissues_by_intensity(
    image: NDArray[np.float32], tissues: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """`tissues` with what they leave open (air) outside the skull split by the image's intensity:
    air, and `BY_INTENSITY` classes with as many voxels each."""
    split = tissues.copy()
    outside = (tissues == AIR) & (image > AIR_SHARE)
    if outside.any():
        shares = np.linspace(0.0, 100.0, BY_INTENSITY + 1)[1:-1]
        limits = np.percentile(image[outside], shares)
        first = INDEX["outside the skull 0"]
        split[outside] = first + np.searchsorted(limits, image[outside]).astype(np.uint8)
    return split


def split_heads(
    names: Sequence[str], counts: tuple[int, int], seed: int
) -> tuple[list[str], list[str], list[str]]:
    """Names for training, validation and test: `counts` are how many the latter two hold."""
    validation, test = counts
    order = [sorted(names)[n] for n in np.random.default_rng(seed).permutation(len(names))]
    last = validation + test
    return sorted(order[last:]), sorted(order[:validation]), sorted(order[validation:last])


def names_of_part(names: Sequence[str], part: str | None, seed: int) -> list[str]:
    """Those of the `names` of a folder that a run with that seed has for "training", "validation"
    or "test"; all of them for None."""
    if part is None:
        return list(names)
    return split_heads(names, HELD_OUT, seed)[PARTS.index(part)]


def _mean_of_blocks(voxels: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    i, j, k = (n // factor for n in voxels.shape)
    f = factor
    blocks = voxels[: i * f, : j * f, : k * f].reshape(i, f, j, f, k, f)
    mean: NDArray[np.float32] = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    return mean
