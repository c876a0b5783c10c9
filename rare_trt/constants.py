"""Constants that the Python and the C++ runtime share.

constants.json holds them with units and reasons. The C++ build reads the same file, so a value is
written once. A test checks that both languages use every entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_VALUES: Final[dict[str, Any]] = {
    name: entry["value"]
    for name, entry in json.loads(Path(__file__).with_suffix(".json").read_bytes()).items()
}

MAX_SHEAR_DEG: Final[float] = _VALUES["MAX_SHEAR_DEG"]
MIN_VOXEL_MM: Final[float] = _VALUES["MIN_VOXEL_MM"]
MAX_VOXEL_MM: Final[float] = _VALUES["MAX_VOXEL_MM"]
MAX_OFFSET_MM: Final[float] = _VALUES["MAX_OFFSET_MM"]
CLEAR_ALIGNMENT: Final[float] = _VALUES["CLEAR_ALIGNMENT"]
MIN_DEVIATION: Final[float] = _VALUES["MIN_DEVIATION"]
EXTENT_TOLERANCE_MM: Final[float] = _VALUES["EXTENT_TOLERANCE_MM"]
CENTRE_DECIMALS: Final[int] = _VALUES["CENTRE_DECIMALS"]
SPACING_TOLERANCE: Final[float] = _VALUES["SPACING_TOLERANCE"]
COARSER_FROM: Final[float] = _VALUES["COARSER_FROM"]
BUCKET: Final[int] = _VALUES["BUCKET"]
MAX_OVERLAP: Final[int] = _VALUES["MAX_OVERLAP"]
MAX_STRAY_VOXELS: Final[float] = _VALUES["MAX_STRAY_VOXELS"]
POSITION_TOLERANCE: Final[float] = _VALUES["POSITION_TOLERANCE"]
SUBVOXEL_TOLERANCE: Final[float] = _VALUES["SUBVOXEL_TOLERANCE"]
POSITION_DECIMALS: Final[int] = _VALUES["POSITION_DECIMALS"]
STEP_DECIMALS: Final[int] = _VALUES["STEP_DECIMALS"]
MEMORY_LIMIT_BYTES: Final[int] = _VALUES["MEMORY_LIMIT_BYTES"]
FIXED_BYTES: Final[int] = _VALUES["FIXED_BYTES"]
BYTES_PER_FILTER: Final[float] = _VALUES["BYTES_PER_FILTER"]
BYTES_PER_FILTER_BF16: Final[float] = _VALUES["BYTES_PER_FILTER_BF16"]
LOGIT_BYTES: Final[float] = _VALUES["LOGIT_BYTES"]
PREPARED_BYTES: Final[int] = _VALUES["PREPARED_BYTES"]
EDGE_SHARE: Final[float] = _VALUES["EDGE_SHARE"]
FORMAT_VERSION: Final[int] = _VALUES["FORMAT_VERSION"]
MAX_INTEGER: Final[int] = _VALUES["MAX_INTEGER"]
MAX_MANIFEST_BYTES: Final[int] = _VALUES["MAX_MANIFEST_BYTES"]
MAX_CACHE_BYTES: Final[int] = _VALUES["MAX_CACHE_BYTES"]
DIGEST_BYTES: Final[int] = _VALUES["DIGEST_BYTES"]
ARENA_ALIGNMENT: Final[int] = _VALUES["ARENA_ALIGNMENT"]
MAX_BUCKETS: Final[int] = _VALUES["MAX_BUCKETS"]
UNWRITTEN: Final[int] = _VALUES["UNWRITTEN"]
ENGINE_GOLDEN_RUNS: Final[int] = _VALUES["ENGINE_GOLDEN_RUNS"]
KEPT_ERRORS: Final[int] = _VALUES["KEPT_ERRORS"]
