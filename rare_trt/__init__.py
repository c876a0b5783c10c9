"""rare-trt: RARE-UNet from a scan to labels, through the engine that fits its voxel spacing."""

from rare_trt.errors import RareTrtError
from rare_trt.geometry import Grid, Volume
from rare_trt.nifti import Scan, read_scan
from rare_trt.result import Result
from rare_trt.segmenter import Segmenter

__all__ = ["Grid", "RareTrtError", "Result", "Scan", "Segmenter", "Volume", "read_scan"]
