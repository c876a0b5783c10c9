"""Names of scans and of the files written beside them. Loads nothing: clients start with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Final

from rare_trt.errors import OutputError, ScanError

SUFFIXES: Final = (".nii.gz", ".nii")

# FreeSurfer's files are read too, and never written.
SCAN_SUFFIXES: Final = (*SUFFIXES, ".mgz", ".mgh")

# The largest scan, as a file and as its header declares: 2 billion voxels of 16 bits, far beyond
# any scanner's, and what fits in 16 GiB of memory together with its copies.
MAX_BYTES: Final = 4 << 30

# The end of BIDS names of discrete segmentations.
DSEG: Final = "_dseg"

# A package has at most 255 labels.
MAX_NAMES_BYTES: Final = 1 << 20

# The names of the files in a server's response.
LABELS: Final = "labels.nii.gz"
LABEL_NAMES: Final = "labels_dseg.tsv"
REPORT: Final = "report.json"
PICTURE: Final = "picture.png"


def is_scan_name(path: Path) -> bool:
    """Whether the name is that of a scan (NIfTI or FreeSurfer's); hidden files, which some systems
    create, do not count."""
    return path.name.lower().endswith(SCAN_SUFFIXES) and not path.name.startswith(".")


def is_compressed(path: Path) -> bool:
    """Whether the name is that of a compressed file."""
    return path.name.lower().endswith(".gz")


def stem(path: Path) -> str:
    """The scan's name without .nii.gz, .nii, .mgz or .mgh."""
    name = path.name
    for suffix in SCAN_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    raise OutputError(f"{path}: expected a name that ends in .nii or .nii.gz: rename it")


def names_path(labels: Path) -> Path:
    """The path of the label names beside the file `labels`: X_dseg.tsv for X.nii.gz, and for
    X_dseg.nii.gz too, whose name has BIDS' end of a discrete segmentation already.

    Raises OutputError unless `labels` has the name of a NIfTI file.
    """
    if not labels.name.lower().endswith(SUFFIXES):
        raise OutputError(f"{labels}: expected a name that ends in .nii or .nii.gz: rename it")
    return labels.with_name(f"{stem(labels).removesuffix(DSEG)}{DSEG}.tsv")


def names_tsv(names: Sequence[str]) -> bytes:
    """The content of the file of label names: one row per value from 0 up."""
    rows = [f"{value}\t{name}" for value, name in enumerate(names)]
    return ("index\tname\n" + "\n".join(rows) + "\n").encode()


def is_names_file(path: Path) -> bool:
    """Whether the file at `path` has the form of `names_tsv`; False where it cannot be read."""
    try:
        if file_size(path) > MAX_NAMES_BYTES:
            return False
        head, *rows = path.read_bytes().decode().removesuffix("\n").split("\n")
    except (ScanError, OSError, UnicodeDecodeError):
        return False
    expected = (re.fullmatch(rf"{value}\t[^\t]+", row) for value, row in enumerate(rows))
    return head == "index\tname" and bool(rows) and all(expected)


def drop_unchanged_names(contents: dict[Path, bytes], labels: Path) -> None:
    """Takes the label names out of the `contents` to write beside the file `labels`, where the same
    names lie there already: deleted labels leave them behind."""
    path = names_path(labels)
    if is_names_file(path) and path.read_bytes() == contents[path]:
        del contents[path]


def output_paths(
    labels: Path, report: Path | str | None = None, picture: Path | str | None = None
) -> list[Path]:
    """Every file that saving a result to these paths writes."""
    more = [Path(path) for path in (report, picture) if path is not None]
    return [labels, names_path(labels), *more]


def read_scan_file(path: Path) -> bytes:
    """The bytes of the scan's file; raises ScanError where it cannot be read."""
    size = file_size(path)
    if size > MAX_BYTES:
        raise ScanError(
            f"{path}: has {size} bytes; expected at most {MAX_BYTES}: cut or average the scan first"
        )
    try:
        with path.open("rb") as file:
            return file.read(size + 1)
    except OSError as error:
        raise _unreadable(path, error) from error


def file_size(path: Path) -> int:
    """Bytes in the scan's file, which is not opened; raises ScanError unless it is a regular
    file: a pipe would block, and a device never ends."""
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not S_ISREG(found.st_mode):
        raise ScanError(
            f"{path}: cannot be read (not a file); expected a NIfTI file: check the path"
        )
    return found.st_size


def _unreadable(path: Path, error: OSError) -> ScanError:
    if isinstance(error, FileNotFoundError):
        return ScanError(f"{path}: no such file; expected a NIfTI scan: check the path")
    return ScanError(
        f"{path}: cannot be read ({error.strerror}); expected a NIfTI file: check the path and its "
        "permissions"
    )
