"""The scans in folders, and why every other file in them is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path
from stat import S_ISREG
from typing import Final

from rare_trt.errors import ScanError
from rare_trt.scan.label_mark import holds_labels
from rare_trt.storage.naming import is_scan_name

# DICOM files begin with 128 bytes of anything and this word.
DICOM_MARK: Final = slice(128, 132)
DICOM: Final = b"DICM"

# Files of a folder without scans that are searched for it.
MOST_OTHERS: Final = 20


@dataclass
class ScansInFolder:
    """The scans in the folder `root`, each with the folder below it that it lies in.

    `left_out` has one sentence on everything else, with the reason; hidden files and folders are
    not mentioned.
    """

    root: Path
    scans: list[tuple[Path, Path]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_scans(root: Path, *, recursive: bool, outputs: Collection[Path]) -> ScansInFolder:
    """The scans (.nii, .nii.gz, .mgz, .mgh) in the folder `root`, in the order of their names.

    With `recursive` also those in the folders below, links to folders included, each folder once;
    but not in folders below that are one of the `outputs`. Files that are labels by their headers
    are left out. Raises ScanError where no scan is left.
    """
    return _Search(root, recursive, {realpath(path) for path in outputs}).run()


class _Search:
    """One walk through a folder."""

    def __init__(self, root: Path, recursive: bool, outputs: Collection[str]) -> None:
        self._found = ScansInFolder(root)
        self._recursive, self._outputs = recursive, outputs
        self._visited: set[str] = set()
        self._others: list[Path] = []
        self._labels = 0
        self._folders = 0

    def run(self) -> ScansInFolder:
        self._search(self._found.root, Path())
        if self._others:
            endings = Counter(path.suffix.lower() or "no ending" for path in self._others)
            listed = ", ".join(f"{ending}: {endings[ending]}" for ending in sorted(endings))
            self._found.left_out.append(
                f"{self._found.root}: files that are not named as scans ({listed})"
            )
        if self._folders:
            self._found.left_out.append(
                f"{self._found.root}: folders ({self._folders}): --recursive segments their scans"
            )
        if not self._found.scans:
            raise ScanError(f"{self._found.root}: {self._why_none()}")
        return self._found

    def _search(self, folder: Path, below: Path) -> None:
        self._visited.add(realpath(folder))
        for child in sorted(folder.iterdir()):
            if child.name.startswith("."):
                continue
            if child.is_dir():
                self._enter(child, below / child.name)
            elif not is_scan_name(child):
                self._others.append(child)
            elif holds_labels(child):
                self._labels += 1
                self._found.left_out.append(f"{child}: holds labels, as its header states")
            else:
                self._found.scans.append((child, below))

    def _enter(self, folder: Path, below: Path) -> None:
        if not self._recursive:
            self._folders += 1
        elif realpath(folder) in self._visited:
            self._found.left_out.append(f"{folder}: a link to a folder that is searched already")
        elif realpath(folder) in self._outputs:
            self._found.left_out.append(f"{folder}: outputs are written there")
        else:
            self._search(folder, below)

    def _why_none(self) -> str:
        if self._labels:
            return (
                f"a folder without scans (its {self._labels} NIfTI files hold labels, as their "
                "headers state): name the folder of the scans"
            )
        if any(_are_dicom(self._others[:MOST_OTHERS])):
            return (
                "a folder of DICOM files; expected NIfTI scans (.nii or .nii.gz): convert the "
                "series first, for instance with dcm2niix, and name the folder of its results"
            )
        if self._folders:
            return (
                "a folder without scans (.nii, .nii.gz, .mgz, .mgh), but with folders: --recursive "
                "searches them"
            )
        return "a folder without scans (.nii, .nii.gz, .mgz, .mgh): check the path"


def _are_dicom(paths: list[Path]) -> Iterator[bool]:
    for path in paths:
        # A pipe would block.
        if S_ISREG(path.lstat().st_mode):
            with path.open("rb") as file:
                yield file.read(DICOM_MARK.stop)[DICOM_MARK] == DICOM
