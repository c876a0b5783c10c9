"""Fuzzes the way from a file's bytes to a scan, and from that scan to a label file.

`python fuzz/scan.py CORPUS...` runs it under atheris (scripts/fuzz.sh); tests replay the corpus.
"""

from __future__ import annotations

import gzip
import sys


def one(data: bytes) -> None:
    """Raises only for a defect: bytes become a sound scan or a ScanError, plain and compressed.

    A fuzzer cannot guess checksums, so it is given them.
    """
    _read(data)
    _read(gzip.compress(data, 1, mtime=0))


def _read(data: bytes) -> None:
    # Not at the top: `main` is to import these while atheris watches.
    import numpy as np

    from rare_trt.errors import ScanError
    from rare_trt.scan.nifti import label_bytes, scan_from_bytes

    try:
        with np.errstate(all="ignore"):
            scan = scan_from_bytes(data, "scan")
    except ScanError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from error
        return
    volume = scan.volume
    if min(volume.grid.shape) < 1 or not np.isfinite(volume.voxels).all():
        raise AssertionError("voxels that the gate must not admit")
    if not (np.isfinite(volume.grid.affine).all() and min(volume.grid.spacing_mm) > 0.0):
        raise AssertionError("a place that the gate must not admit")
    labels = np.zeros(volume.grid.shape, np.uint8)
    for compressed in (False, True):
        written = label_bytes(labels, scan, volume.grid, compressed)
        again = scan_from_bytes(written, "labels")
        if not np.array_equal(again.volume.grid.affine, volume.grid.affine):
            raise AssertionError("labels lie elsewhere than their scan")


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["rare_trt"]):
        # Not used here: imported to be instrumented.
        import rare_trt.scan.nifti  # noqa: F401
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
