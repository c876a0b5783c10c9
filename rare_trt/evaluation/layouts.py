"""Layouts of labelled scans: images/ and labels/, the Medical Segmentation Decathlon's, nnU-Net's.

In nnU-Net's the channels of case X lie in files of their own, X_0000.nii.gz, X_0001.nii.gz and so
on. Version 1 of its dataset.json lists X.nii.gz, which is no file; version 2 lists nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rare_trt.errors import ScanError
from rare_trt.storage.naming import SCAN_SUFFIXES, is_scan_name, stem

LISTING: Final = "dataset.json"


@dataclass(frozen=True)
class CaseFiles:
    """The files of one labelled scan: `image` has all channels, or the first one where `further`
    has a file for each of the others."""

    name: str
    image: Path
    labels: Path
    further: tuple[Path, ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """The file or files of the scan, in the order of its channels."""
        return (self.image, *self.further)


def list_cases(folder: Path) -> list[CaseFiles]:
    """Lists the labelled scans of `folder` under their own names, which may be equal; their files
    need not exist. Raises ScanError where dataset.json has another layout."""
    listing = folder / LISTING
    if not listing.is_file():
        images = [(stem(path), [path]) for path in _scans(folder / "images")]
        return _with_labels(images, folder / "labels")
    values = _read_listing(listing)
    if "training" not in values:
        by_case = _files_by_case(_scans(folder / "imagesTr", _file_ending(listing, values)))
        return _with_labels(by_case.items(), folder / "labelsTr")
    try:
        pairs = [(folder / one["image"], folder / one["label"]) for one in values["training"]]
    except (KeyError, TypeError) as error:
        raise _other_layout(listing, error) from error
    channels: dict[Path, dict[str, list[Path]]] = {}
    found = []
    for image, labels in pairs:
        if not image.is_file() and image.parent not in channels:
            channels[image.parent] = _files_by_case(_scans(image.parent))
        files = [image] if image.is_file() else channels[image.parent].get(stem(image), [image])
        found.append(CaseFiles(stem(image), files[0], labels, tuple(files[1:])))
    return found


def check_names(folder: Path, labels: Sequence[str], channels: Sequence[str]) -> None:
    """Raises ScanError where the dataset.json of `folder` gives one of the names `labels` or
    `channels`, each at its number, another number."""
    listing = folder / LISTING
    if not listing.is_file():
        return
    values = _read_listing(listing)
    faults = [
        f"{kind} {number} is {name!r}, which has the number {listed[name.casefold()]} there"
        for kind, names, listed in (
            ("label", labels, _numbers(values.get("labels"))),
            ("channel", channels, _numbers(values.get("channel_names", values.get("modality")))),
        )
        for number, name in enumerate(names)
        if listed.get(name.casefold(), number) != number
    ]
    if faults:
        raise ScanError(
            f"{listing}: names other numbers than the recipe ({'; '.join(faults)}); expected one "
            "order in both: correct the recipe"
        )


def _read_listing(listing: Path) -> dict[str, Any]:
    try:
        values = json.loads(listing.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _other_layout(listing, error) from error
    if not isinstance(values, dict):
        raise _other_layout(listing, TypeError("it is no object"))
    return values


def _file_ending(listing: Path, values: Mapping[str, Any]) -> str:
    ending = str(values.get("file_ending", SCAN_SUFFIXES[0]))
    if ending not in SCAN_SUFFIXES:
        raise ScanError(
            f"{listing}: file_ending is {ending!r}; expected one of {', '.join(SCAN_SUFFIXES)}: "
            "convert the scans"
        )
    return ending


def _scans(folder: Path, ending: str = "") -> list[Path]:
    paths = sorted(folder.glob("*"))
    return [path for path in paths if is_scan_name(path) and path.name.endswith(ending)]


def _with_labels(images: Iterable[tuple[str, Sequence[Path]]], folder: Path) -> list[CaseFiles]:
    """Cases with the label files of `folder` that have their names, preferably with the suffix of
    the scan."""
    known = {path.name: path for path in _scans(folder)}
    found = []
    for name, (first, *further) in images:
        suffix = first.name[len(stem(first)) :]
        names = [f"{name}{ending}" for ending in (suffix, *SCAN_SUFFIXES)]
        labels = next((known[one] for one in names if one in known), folder / names[0])
        found.append(CaseFiles(name, first, labels, tuple(further)))
    return found


def _files_by_case(scans: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each case in the order of its channels, those that are missing included. A file
    whose name has no number of a channel is a case of its own."""
    numbered: dict[str, dict[int, Path]] = {}
    for path in scans:
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
        case, number = (match[1], int(match[2])) if match else (stem(path), 0)
        numbered.setdefault(case, {})[number] = path
    found = {}
    for case, files in numbered.items():
        path = next(iter(files.values()))
        suffix = path.name[len(stem(path)) :]
        found[case] = [
            files.get(number, path.with_name(f"{case}_{number:04d}{suffix}"))
            for number in range(max(files) + 1)
        ]
    return found


def _numbers(names: object) -> dict[str, int]:
    """The number of each name, from {number: name} or {name: number}; regions of several labels are
    left out."""
    found: dict[str, int] = {}
    for key, value in names.items() if isinstance(names, dict) else ():
        name, number = (value, key) if isinstance(value, str) else (key, value)
        if str(number).isdigit():
            found[str(name).casefold()] = int(number)
    return found


def _other_layout(listing: Path, error: Exception) -> ScanError:
    return ScanError(
        f"{listing}: not in the Decathlon's layout or nnU-Net's ({error!r}); expected a list "
        "`training` of {image, label}, or scans in imagesTr/ and labelsTr/: correct it"
    )
