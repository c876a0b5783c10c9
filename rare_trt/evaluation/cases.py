"""Labelled scans: finding, reading onto canonical axes, splitting by subject."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Canonical, Grid
from rare_trt.scan.nifti import read_scan
from rare_trt.scan.validation import grid_difference
from rare_trt.storage.naming import is_scan_name, stem

VALUES_NAMED: Final = 5


@dataclass(frozen=True)
class CaseFiles:
    """The files of one labelled scan."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True, eq=False)
class Case:
    """One labelled scan, its axes in canonical order.

    Voxels float32 [channel, i, j, k], as stored, and labels uint8 [i, j, k] lie on `grid`.
    """

    name: str
    voxels: NDArray[np.float32]
    labels: NDArray[np.uint8]
    grid: Grid


def find_cases(folder: Path) -> list[CaseFiles]:
    """Lists the labelled scans of `folder`: those of a dataset.json in the layout of the Medical
    Segmentation Decathlon, or files of equal names in images/ and labels/.

    Raises ScanError where there are none or files are missing.
    """
    listing = folder / "dataset.json"
    if listing.is_file():
        pairs = _listed_pairs(listing)
    else:
        images = sorted(path for path in folder.glob("images/*") if is_scan_name(path))
        pairs = [(path, folder / "labels" / path.name) for path in images]
    if not pairs:
        raise ScanError(
            f"{folder}: no labelled scans; expected images/ and labels/ with files of equal names, "
            "or a dataset.json in the Decathlon's layout: check --data"
        )
    missing = [path for pair in pairs for path in pair if not path.is_file()]
    if missing:
        raise ScanError(
            f"{missing[0]}: no such file ({len(missing)} missing in all); expected a scan and a "
            "label file for every case: complete the folder"
        )
    return [CaseFiles(stem(image), image, labels) for image, labels in pairs]


def load_cases(files: Sequence[CaseFiles], channels: int, classes: int) -> list[Case]:
    """Loads all of `files` into memory, with a progress bar; raises ScanError as `load_case`."""
    return [load_case(one, channels, classes) for one in tqdm(files, "reading", unit="case")]


def load_case(files: CaseFiles, channels: int, classes: int) -> Case:
    """Loads one case of `channels` channels with labels from 0 to `classes` - 1.

    Raises ScanError where a file is not a valid scan, the labels lie on another grid than the scan,
    or have other values.
    """
    scan = read_scan(files.image, channels).volume
    labels = read_scan(files.labels).volume
    difference = grid_difference(scan.grid, labels.grid)
    if difference is not None:
        raise ScanError(
            f"{files.labels}: lies on another grid than its scan ({difference}): resample the "
            "labels"
        )
    unknown = [v for v in np.unique(labels.voxels).tolist() if v not in range(classes)]
    if unknown:
        named = ", ".join(f"{v:g}" for v in unknown[:VALUES_NAMED])
        more = ", ..." if len(unknown) > VALUES_NAMED else ""
        raise ScanError(
            f"{files.labels}: holds {named}{more}; expected 0 to {classes - 1} alone: correct the "
            "labels, or name them all in the recipe"
        )
    canonical = Canonical(scan.grid)
    voxels = scan.voxels if scan.voxels.ndim == 4 else scan.voxels[..., None]
    return Case(
        name=files.name,
        voxels=np.moveaxis(canonical.from_scan(voxels), 3, 0).astype(np.float32),
        labels=canonical.from_scan(labels.voxels).astype(np.uint8),
        grid=canonical.grid,
    )


def split_by_subject(
    names: Sequence[str], cases_per_subject: int, share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Returns the indices of training cases and of those held out for validation.

    A random `share` of the subjects is held out, with all of their cases: at least one subject, and
    where there are several, not all. The subject of the n-th case (by the last number in its name)
    is (n - 1) // cases_per_subject, so that cases 1 to cases_per_subject are the first one's; a
    case without a number is a subject of its own, and so is every case where each subject has one.
    """
    subjects = [_subject(name, cases_per_subject) for name in names]
    known = sorted(set(subjects))
    count = max(1, min(round(share * len(known)), len(known) - 1))
    order = np.random.default_rng(seed).permutation(len(known))
    held_out = {known[index] for index in order[:count]}
    training = [index for index, subject in enumerate(subjects) if subject not in held_out]
    validation = [index for index, subject in enumerate(subjects) if subject in held_out]
    return training, validation


def _subject(name: str, cases_per_subject: int) -> str:
    numbers = re.findall(r"\d+", name)
    if cases_per_subject == 1 or not numbers:
        return name
    return f"{(int(numbers[-1]) - 1) // cases_per_subject:08d}"


def _listed_pairs(listing: Path) -> list[tuple[Path, Path]]:
    folder = listing.parent
    try:
        entries: list[dict[str, Any]] = json.loads(listing.read_text())["training"]
        return [(folder / entry["image"], folder / entry["label"]) for entry in entries]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ScanError(
            f"{listing}: not in the Decathlon's layout ({error!r}); expected a list `training` of "
            "{image, label}"
        ) from error
