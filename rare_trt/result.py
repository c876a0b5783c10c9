"""The result of a segmentation: labels, how they were made, and the files they are saved as."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from os.path import realpath
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rare_trt.backends import GRAPH_PRECISION, Arithmetic
from rare_trt.errors import OutputError
from rare_trt.overlay import picture_png
from rare_trt.package.reading import Package
from rare_trt.plan.routing import RouteDecision
from rare_trt.scan.field_of_view import box_grid
from rare_trt.scan.geometry import Grid, Slices, Triple, Volume
from rare_trt.scan.nifti import Scan, label_bytes
from rare_trt.scan.out_of_distribution import LabelStatistics, doubtful_label_flags, range_text
from rare_trt.stopwatch import Stopwatch
from rare_trt.storage.files import write_files
from rare_trt.storage.naming import (
    drop_unchanged_names,
    is_compressed,
    names_path,
    names_tsv,
    output_paths,
)

# The distributions whose versions a report names: all that touches voxels.
REPORTED: Final = ("rare-trt", "openvino", "numpy", "nibabel")


@dataclass(frozen=True, eq=False)
class SegmentedBox:
    """One segmented part of a scan: the box around `at_mm`, or the whole scan where that is None.

    `part` is where it lies in the result's labels. `volumes_mm3` holds one volume per name of a
    label, counted at the finest spacing. `remarks` say how its content differs from training's, and
    `label_statistics` are what its labels are judged by.
    """

    at_mm: Triple | None
    part: Slices
    volumes_mm3: dict[str, float]
    label_statistics: LabelStatistics
    remarks: tuple[str, ...] = ()

    @property
    def touches_edge(self) -> bool:
        """Whether more than a tip of the labels reaches the edge of the part."""
        return self.label_statistics.touch_edge


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Labels uint8 [i, j, k] on `grid`, which is the scan's own unless another was requested.

    `volumes_mm3` holds one volume per name of a label, counted at the finest spacing, in all
    `boxes` together: one per point, or one for the whole scan. Where two boxes overlap, a voxel is
    counted for the one that its label comes from; `disputes` has the places in `boxes` of two that
    label voxels differently, and how many. `timings_ms` gives the milliseconds of each stage.
    """

    labels: NDArray[np.uint8]
    grid: Grid
    scan: Scan
    route: RouteDecision
    backend: str
    precision: Arithmetic
    package: Package
    timings_ms: dict[str, float]
    volumes_mm3: dict[str, float]
    boxes: tuple[SegmentedBox, ...]
    disputes: tuple[tuple[int, int, int], ...] = ()

    @property
    def touches_edge(self) -> bool:
        """Whether a label touches the edge of the part that was segmented."""
        return any(box.touches_edge for box in self.boxes)

    @property
    def at_mm(self) -> Triple | list[Triple | None] | None:
        """The point in world mm whose box was segmented, a list of several, or None for the whole
        scan."""
        points = [box.at_mm for box in self.boxes]
        return points if len(points) > 1 else points[0]

    @property
    def flags(self) -> list[str]:
        """What a physicist should look at before trusting the labels; empty where nothing is.

        With several boxes, a flag of one names it.
        """
        of_boxes = in_boxes([self.box_flags(box) for box in self.boxes])
        forced = ["the route was forced"] if self.route.forced else []
        return [*self.scan.remarks, *of_boxes, *self._overlaps(), *forced]

    @property
    def label_flags(self) -> list[str]:
        """Those of the `flags` that doubt the labels themselves: a strict run refuses them for any.

        With several boxes, a flag of one names it.
        """
        return [*in_boxes([self._label_flags(box) for box in self.boxes]), *self._overlaps()]

    def box_flags(self, box: SegmentedBox) -> list[str]:
        """The flags of one of the `boxes`."""
        return [*box.remarks, *self._label_flags(box)]

    def _overlaps(self) -> list[str]:
        return [
            f"boxes overlap: {one + 1} and {two + 1} label {voxels} voxels differently, and those "
            "of the box with the nearest centre were taken"
            for one, two, voxels in self.disputes
        ]

    def _label_flags(self, box: SegmentedBox) -> list[str]:
        model = self.package.manifest.model
        found = []
        if model.label_distribution is not None:
            found += doubtful_label_flags(
                box.label_statistics,
                self.route.route,
                model.label_distribution,
                model.labels[1:],
                model.channels,
            )
        labels = self.labels[box.part]
        present = np.bincount(labels.ravel(), minlength=len(model.labels))[1:] > 0
        for (name, volume), (low, high), is_there in zip(
            box.volumes_mm3.items(), model.volume_range_mm3, present, strict=True
        ):
            if volume == 0.0:
                found.append(f"empty label: {name}")
            elif not is_there:
                found.append(
                    f"label lost on this grid: {name} has {volume:.3g} mm3, but in no voxel the "
                    "majority; choose a finer grid with --spacing-out"
                )
            elif not low <= volume <= high:
                found.append(
                    f"volume outside the training range: {name} "
                    f"{range_text(volume, (low, high), 0, ' mm3')})"
                )
        if box.touches_edge:
            found.append("a label touches the edge of the segmented field of view")
        return found

    def __repr__(self) -> str:
        """A table: the route, the volumes, the flags, and how it was computed."""
        spacing = " x ".join(f"{size:.3g}" for size in self.grid.spacing_mm)
        took = f"{sum(self.timings_ms.values()):.0f} ms"
        rows = [
            ("labels", f"{' x '.join(map(str, self.labels.shape))} voxels of {spacing} mm"),
            ("package", self.package.manifest.name),
            ("route", str(self.route)),
            (
                "computed",
                f"{self.backend} {self.precision}, {took}",
            ),
            *self._box_rows(),
            *((name, f"{volume:.0f} mm3") for name, volume in self.volumes_mm3.items()),
            *(("flag", flag) for flag in self.flags or ["none"]),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(["Result", *(f"  {name:<{width}}  {value}" for name, value in rows)])

    def _box_rows(self) -> list[tuple[str, str]]:
        """The points of boxes, and of several the volumes in each."""
        rows = []
        for number, box in enumerate(self.boxes, start=1):
            point = ", ".join(f"{x:.4g}" for x in box.at_mm or ()) + " mm"
            if len(self.boxes) > 1:
                parts = (f"{name} {mm3:.0f} mm3" for name, mm3 in box.volumes_mm3.items())
                rows.append((f"box {number} at", f"{point}: {', '.join(parts)}"))
            elif box.at_mm is not None:
                rows.append(("box at", point))
        return rows

    def report(self) -> dict[str, Any]:
        """Everything about this run but the labels, ready for JSON."""
        manifest = self.package.manifest
        graph = self.package.graph(self.route.route, GRAPH_PRECISION[self.precision])
        return {
            "versions": {name: version(name) for name in REPORTED},
            "package": {
                "name": manifest.name,
                "manifest_sha256": self.package.manifest_sha256,
                "graph_sha256": manifest.files[graph.file].sha256,
                "weights_sha256": manifest.files[graph.weights].sha256,
            },
            "backend": self.backend,
            "precision": self.precision,
            "route": {
                **asdict(self.route),
                "resampled": self.route.resampled,
                "explained": str(self.route),
            },
            "scan": {
                **self._hashes(),
                "shape": self.scan.volume.grid.shape,
                "spacing_mm": self.scan.volume.grid.spacing_mm,
                "obliqueness_deg": round(self.scan.volume.grid.obliqueness_deg, 3),
            },
            "at_mm": self.at_mm,
            "labels": {"shape": self.grid.shape, "spacing_mm": self.grid.spacing_mm},
            "volumes_mm3": self.volumes_mm3,
            **self._several_boxes(),
            "largest_resampling_factor": max(
                math.exp(abs(math.log(f))) for f in self.route.factors
            ),
            "flags": self.flags,
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings_ms.items()},
        }

    def _several_boxes(self) -> dict[str, Any]:
        """The entry for boxes, where there are several."""
        if len(self.boxes) == 1:
            return {}
        boxes = [
            {
                "at_mm": box.at_mm,
                "volumes_mm3": box.volumes_mm3,
                "touches_edge": box.touches_edge,
                "flags": self.box_flags(box),
            }
            for box in self.boxes
        ]
        return {"boxes": boxes}

    def _hashes(self) -> dict[str, Any]:
        """The SHA-256 of the scan's file, or of each channel's."""
        if self.scan.channel_sha256:
            return {"channel_sha256": self.scan.channel_sha256}
        return {"sha256": self.scan.sha256}

    def report_json(self) -> bytes:
        """The report as the bytes of a JSON file."""
        return (json.dumps(self.report(), indent=2) + "\n").encode()

    def save(
        self,
        labels: Path | str,
        *,
        report: Path | str | None = None,
        picture: Path | str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Writes the labels (.nii or .nii.gz), their names (BIDS dseg.tsv beside them), and on
        request the report (JSON) and a picture (PNG): all of them or none."""
        contents = self.files(labels, report=report, picture=picture)
        with Stopwatch(self.timings_ms)("write"):
            if not overwrite:
                drop_unchanged_names(contents, Path(labels))
            write_files(contents, overwrite=overwrite)

    def files(
        self,
        labels: Path | str,
        *,
        report: Path | str | None = None,
        picture: Path | str | None = None,
    ) -> dict[Path, bytes]:
        """What `save` writes to these paths; raises OutputError where two of them are one."""
        labels = Path(labels)
        paths = [realpath(path) for path in output_paths(labels, report, picture)]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise OutputError(f"{twice}: is to be written twice: name another output")
        with Stopwatch(self.timings_ms)("encode"):
            compressed = is_compressed(labels)
            contents = {labels: label_bytes(self.labels, self.scan, self.grid, compressed)}
            contents[names_path(labels)] = names_tsv(self.package.manifest.model.labels)
            if picture is not None:
                contents[Path(picture)] = self._picture()
        if report is not None:
            contents[Path(report)] = self.report_json()
        return contents

    def _picture(self) -> bytes:
        legend = [f"{name} {volume:.0f} mm3" for name, volume in self.volumes_mm3.items()]
        labels = Volume(self.labels, self.grid)
        count = len(self.flags)
        flags = f"{count} flag{'s' if count > 1 else ''}: look at the report" if count else ""
        title = [text for text in (self.scan.name, str(self.route), flags) if text]
        boxes = [box_grid(self.grid, box.part) for box in self.boxes if box.at_mm is not None]
        return picture_png(self.scan.volume, labels, title, legend, boxes)


def in_boxes(of_boxes: Sequence[Sequence[str]]) -> list[str]:
    """The sentences of every box, each with the number of its box where there are several."""
    if len(of_boxes) == 1:
        return list(of_boxes[0])
    return [f"box {n}: {text}" for n, found in enumerate(of_boxes, start=1) for text in found]
