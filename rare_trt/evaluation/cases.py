"""Labelled scans: finding, reading and checking them, splitting by subject."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os.path import relpath
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rare_trt.errors import ScanError
from rare_trt.evaluation.layouts import CaseFiles as CaseFiles
from rare_trt.evaluation.layouts import list_cases
from rare_trt.scan.channels import read_channels
from rare_trt.scan.geometry import Array, Canonical, Grid, Volume
from rare_trt.scan.intensity import IntensityRule, normalise
from rare_trt.scan.nifti import read_scan, refuse_labels
from rare_trt.scan.validation import grid_difference

VALUES_NAMED: Final = 5

# How far a label may be from a whole number: programs that resample or average write such values.
ROUNDING: Final = 1e-3


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
    """Lists the labelled scans of `folder`: files of equal names in images/ and labels/, or with a
    dataset.json those of the Medical Segmentation Decathlon's or nnU-Net's layout.

    Scans of equal names in several folders have the folder in their case's name. Raises ScanError
    where there are none, files are missing, or two are of one case.
    """
    cases = list_cases(folder)
    if not cases:
        raise ScanError(
            f"{folder}: no labelled scans; expected images/ and labels/ with files of equal names, "
            "or a dataset.json in the Decathlon's layout or nnU-Net's: check --data"
        )
    missing = [
        str(path) for case in cases for path in (*case.images, case.labels) if not path.is_file()
    ]
    if missing:
        raise ScanError(
            f"{', '.join(missing)}: no such file ({len(missing)} missing in all); expected a scan "
            "and a label file for every case: complete the folder"
        )
    counts = Counter(case.name for case in cases)
    cases = [case if counts[case.name] == 1 else _with_folder(case, folder) for case in cases]
    _check_each_once(cases)
    return cases


def find_cases_in(folders: Sequence[Path]) -> list[CaseFiles]:
    """The labelled scans of several folders; those of equal names have their folder's name in front
    of it. Raises ScanError as `find_cases`."""
    found = [(folder, case) for folder in folders for case in find_cases(folder)]
    counts = Counter(case.name for _, case in found)
    cases = [
        case if counts[case.name] == 1 else replace(case, name=f"{folder.name}/{case.name}")
        for folder, case in found
    ]
    _check_each_once(cases)
    return cases


def _check_each_once(cases: Sequence[CaseFiles]) -> None:
    counts = Counter(case.name for case in cases)
    twice = [str(case.image) for case in cases if counts[case.name] > 1]
    if twice:
        raise ScanError(
            f"{', '.join(twice)}: are of one case, by their names; expected each case once: remove "
            "or rename the others"
        )


def load_cases(
    files: Sequence[CaseFiles], channels: int, classes: int, intensity: IntensityRule
) -> list[Case]:
    """Loads all of `files` into memory, several at a time, with a progress bar: cases of `channels`
    channels with labels from 0 to `classes` - 1.

    Raises ScanError with all faults, one a line, each with its file: files that are not valid
    scans, channels in which `intensity` finds no contrast, other labels, and labels on another grid
    than their scan.
    """
    return list(_read_cases(files, channels, classes, intensity))


def check_cases(
    files: Sequence[CaseFiles], channels: int, classes: int, intensity: IntensityRule
) -> None:
    """Raises ScanError as `load_cases`; keeps no case in memory."""
    for _ in _read_cases(files, channels, classes, intensity):
        pass


def _read_cases(
    files: Sequence[CaseFiles], channels: int, classes: int, intensity: IntensityRule
) -> Iterator[Case]:
    faults: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = pool.map(lambda one: _read_case(one, channels, classes, intensity), files)
        for found in tqdm(work, "reading", len(files), unit="case", leave=False):
            if isinstance(found, Case):
                yield found
            else:
                faults += found
    if len(faults) > 1:
        raise ScanError(f"{len(faults)} faults in the data:\n  " + "\n  ".join(faults))
    if faults:
        raise ScanError(faults[0])


def _read_case(
    files: CaseFiles, channels: int, classes: int, intensity: IntensityRule
) -> Case | list[str]:
    """One case as `load_cases` has it, or all its faults."""
    faults: list[str] = []
    scan = labels = None
    try:
        scan = _read_image(files, channels)
        _check_contrast(files, scan, intensity)
    except ScanError as error:
        faults.append(str(error))
    try:
        labels = read_scan(files.labels).volume
        labels = Volume(_whole_labels(files.labels, labels.voxels, classes), labels.grid)
    except ScanError as error:
        faults.append(str(error))
    if scan is not None and labels is not None:
        difference = grid_difference(scan.grid, labels.grid)
        if difference is not None:
            faults.append(
                f"{files.labels}: lies on another grid than its scan ({difference}): resample the "
                "labels"
            )
    if faults or scan is None or labels is None:
        return faults
    canonical = Canonical(scan.grid)
    voxels = scan.voxels if scan.voxels.ndim == 4 else scan.voxels[..., None]
    return Case(
        name=files.name,
        voxels=np.moveaxis(canonical.from_scan(voxels), 3, 0).astype(np.float32),
        labels=canonical.from_scan(labels.voxels).astype(np.uint8),
        grid=canonical.grid,
    )


def _read_image(files: CaseFiles, channels: int) -> Volume:
    """The scan of a case; raises ScanError where it is not valid or has other channels."""
    if not files.further:
        scan = read_scan(files.image, channels)
        try:
            refuse_labels(scan.header)
        except ScanError as error:
            raise ScanError(f"{files.image}: {error}") from error
        return scan.volume
    if len(files.images) != channels:
        raise ScanError(
            f"{files.image}: is one of {len(files.images)} files, one per channel; expected "
            f"{channels}: correct the recipe, or the folder"
        )
    return read_channels(files.images).volume


def _check_contrast(files: CaseFiles, scan: Volume, intensity: IntensityRule) -> None:
    """Raises ScanError where a channel has no contrast."""
    channels = scan.voxels if scan.voxels.ndim == 4 else scan.voxels[..., None]
    for channel in range(channels.shape[3]):
        try:
            normalise(channels[..., channel], intensity)
        except ScanError as error:
            path = files.images[channel if files.further else 0]
            raise ScanError(f"{path}: {error}") from error


def _whole_labels(path: Path, voxels: Array, classes: int) -> Array:
    """The labels as whole numbers below `classes`; raises ScanError where there are others."""
    values = np.unique(voxels)
    whole = np.rint(values)
    between = values[np.abs(values - whole) > ROUNDING]
    if between.size:
        raise ScanError(
            f"{path}: holds values that are not whole numbers ({_list_values(between)}); expected "
            f"labels from 0 to {classes - 1}: resample label maps to the nearest voxel, and write "
            "them as integers"
        )
    unknown = values[(whole < 0) | (whole >= classes)]
    if unknown.size:
        raise ScanError(
            f"{path}: holds {_list_values(unknown)}; expected 0 to {classes - 1} alone: correct "
            "the labels, or name them all in the recipe"
        )
    return np.rint(voxels) if voxels.dtype.kind == "f" else voxels


def _list_values(values: Array) -> str:
    """The first of `values`, with as many digits as their type distinguishes."""
    named = ", ".join(str(value).removesuffix(".0") for value in values[:VALUES_NAMED])
    return named + (", ..." if len(values) > VALUES_NAMED else "")


def _with_folder(case: CaseFiles, folder: Path) -> CaseFiles:
    """`case` under the name that leads from `folder` to its scan, without the suffix."""
    return replace(case, name=Path(relpath(case.image.parent, folder), case.name).as_posix())


def split_by_subject(
    names: Sequence[str], cases_per_subject: int, share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Returns the indices of training cases and of those held out for validation.

    A random `share` of the subjects is held out, with all of their cases: at least one subject, and
    where there are several, not all. The subject of the n-th case (by the last number in its name)
    is (n - 1) // cases_per_subject, so that cases 1 to cases_per_subject are the first one's; a
    case without a number is a subject of its own, and so is every case where each subject has one.
    Cases of different folders are of different subjects.
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
    folder, slash, scan = name.rpartition("/")
    numbers = re.findall(r"\d+", scan)
    if cases_per_subject == 1 or not numbers:
        return name
    return f"{folder}{slash}{(int(numbers[-1]) - 1) // cases_per_subject:08d}"
