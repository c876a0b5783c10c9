"""The mark of a NIfTI file whose voxels are labels: its header's intent.

Loads neither numpy nor nibabel: clients of a server search folders with it.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Final, Literal

# NIFTI_INTENT_LABEL: each voxel is an index into a list of labels.
LABEL_INTENT: Final = 1002

# The intent's name in label files of rare-trt; the field has 16 bytes.
LABEL_INTENT_NAME: Final = b"rare-trt labels"

# Bytes read of a file, and the longest header among them once they are inflated.
FIRST_BYTES: Final = 4096
HEADER_BYTES: Final = 540

# Where headers have the intent's code, by their own size: NIfTI-1 and NIfTI-2.
INTENT_CODE: Final = {348: slice(68, 70), 540: slice(504, 508)}

GZIP: Final = b"\x1f\x8b"
GZIP_WINDOW_BITS: Final = 31


def holds_labels(path: Path) -> bool:
    """Whether the voxels of the file at `path` (.nii or .nii.gz) are labels, by its header.

    Only the file's first bytes are read. False where they cannot be read or are no header.
    """
    try:
        # A pipe would block.
        if not S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            start = file.read(FIRST_BYTES)
    except OSError:
        return False
    if start.startswith(GZIP):
        with suppress(zlib.error):
            start = zlib.decompressobj(GZIP_WINDOW_BITS).decompress(start, HEADER_BYTES)
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        field = INTENT_CODE.get(int.from_bytes(start[:4], order))
        if field is not None:
            return int.from_bytes(start[field], order) == LABEL_INTENT
    return False
