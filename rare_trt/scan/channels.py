"""One scan whose channels lie in files of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rare_trt.errors import ScanError
from rare_trt.scan.geometry import Array, Volume
from rare_trt.scan.nifti import Scan, read_scan, refuse_labels, too_large
from rare_trt.scan.validation import grid_difference
from rare_trt.storage.naming import MAX_BYTES


def read_channels(paths: Sequence[str | os.PathLike[str]]) -> Scan:
    """The scan whose channels lie in files of their own, one 3D file per channel, in their order.

    Voxels are [i, j, k, channel], of a type that fits those of every file. Grid and header are
    the first file's; remarks are those of all, each with its channel's number from 1 up. Raises
    ScanError where a file is not valid as one channel, where two have the same voxels, or where
    they do not lie on one grid.
    """
    found: list[tuple[Path, Scan]] = []
    for path in map(Path, paths):
        scan = read_scan(path)
        try:
            refuse_labels(scan.header)
        except ScanError as error:
            raise ScanError(f"{path}: {error}") from error
        if found:
            _check_beside(path, scan, found)
        found.append((path, scan))
    if not found:
        raise ScanError("the scan has no files; expected one per channel: name them")
    try:
        return _stacked([scan for _, scan in found])
    except MemoryError as error:
        raise too_large(str(paths[0])) from error


def _check_beside(path: Path, scan: Scan, earlier: Sequence[tuple[Path, Scan]]) -> None:
    """Raises ScanError unless `scan`, read from `path`, can be the channel after the `earlier`."""
    first_path, first = earlier[0]
    difference = grid_difference(first.volume.grid, scan.volume.grid)
    if difference is not None:
        raise ScanError(
            f"{path}: lies on another grid than {first_path} ({difference}); expected all channels "
            "on one grid: resample it onto the first one's"
        )
    for other_path, other in earlier:
        if _same_voxels(scan.volume.voxels, other.volume.voxels):
            raise ScanError(
                f"{path}: holds the same voxels as {other_path}; expected a file of its own for "
                "every channel: check the names"
            )
    # As one file would declare it.
    scans = [*(other for _, other in earlier), scan]
    total = len(scans) * scan.volume.voxels.size * _common_type(scans).itemsize
    if total > MAX_BYTES:
        raise ScanError(
            f"{path}: brings the scan to {total} bytes; expected at most {MAX_BYTES} in all "
            "channels: cut or average the scan first"
        )


def _same_voxels(one: Array, other: Array) -> bool:
    # Two scans of one shape differ in nearly every slice: most often one slice settles it.
    middle = one.shape[2] // 2
    return bool(
        np.array_equal(one[:, :, middle], other[:, :, middle]) and np.array_equal(one, other)
    )


def _stacked(scans: Sequence[Scan]) -> Scan:
    first = scans[0]
    shape = (*first.volume.grid.shape, len(scans))
    # Channel after channel, as in a file.
    voxels: Array = np.empty(shape, _common_type(scans), order="F")
    for channel, scan in enumerate(scans):
        voxels[..., channel] = scan.volume.voxels
    voxels.setflags(write=False)
    return replace(
        first,
        volume=Volume(voxels, first.volume.grid),
        sha256=None,
        validated=voxels,
        remarks=tuple(
            f"channel {number}: {remark}"
            for number, scan in enumerate(scans, start=1)
            for remark in scan.remarks
        ),
        channel_sha256=tuple(scan.sha256 for scan in scans if scan.sha256 is not None),
    )


def _common_type(scans: Sequence[Scan]) -> np.dtype[Any]:
    return np.result_type(*(scan.volume.voxels.dtype for scan in scans))
