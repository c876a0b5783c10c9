"""rare-trt: RARE-UNet from a scan to labels, through the engine that fits its voxel spacing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rare_trt.errors import RareTrtError

if TYPE_CHECKING:
    from rare_trt.result import Result, SegmentedBox
    from rare_trt.scan.channels import read_channels
    from rare_trt.scan.geometry import Grid, Volume
    from rare_trt.scan.nifti import Scan, read_scan
    from rare_trt.segmenter import Segmenter

__all__ = [
    "Grid",
    "RareTrtError",
    "Result",
    "Scan",
    "SegmentedBox",
    "Segmenter",
    "Volume",
    "read_channels",
    "read_scan",
]

# Loaded when first used: a client of `rare-trt serve` needs neither numpy nor nibabel, and
# starts in a third of the time.
_HOMES = {
    "Grid": "scan.geometry",
    "Result": "result",
    "Scan": "scan.nifti",
    "SegmentedBox": "result",
    "Segmenter": "segmenter",
    "Volume": "scan.geometry",
    "read_channels": "scan.channels",
    "read_scan": "scan.nifti",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"rare_trt.{_HOMES[name]}"), name)
    # The next access finds it at once.
    globals()[name] = found
    return found
