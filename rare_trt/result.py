"""The result of a segmentation: labels, how they were made, and the files they are saved as."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rare_trt.backends import GRAPH_PRECISION, Arithmetic
from rare_trt.overlay import picture_png
from rare_trt.package.reading import Package
from rare_trt.plan.routing import RouteDecision
from rare_trt.scan.geometry import Grid, Triple, Volume
from rare_trt.scan.nifti import Scan, label_bytes
from rare_trt.scan.out_of_distribution import LabelStatistics, doubtful_label_flags, range_text
from rare_trt.stopwatch import Stopwatch
from rare_trt.storage.files import write_files
from rare_trt.storage.naming import is_compressed, names_path

# The distributions whose versions a report names: all that touches voxels.
REPORTED: Final = ("rare-trt", "openvino", "numpy", "nibabel")


@dataclass(frozen=True, eq=False)
class Result:
    """Labels uint8 [i, j, k] on `grid`, which is the scan's own unless another was requested.

    `volumes_mm3` holds one volume per label from 1 up, counted at the finest spacing.
    `timings_ms` gives the milliseconds of each stage. `at_mm` is the point whose box was segmented,
    or None for the whole scan. `remarks` say what is odd about the scan itself.
    `label_statistics` are what the labels' own flags are judged by.
    """

    labels: NDArray[np.uint8]
    grid: Grid
    scan: Scan
    route: RouteDecision
    backend: str
    precision: Arithmetic
    package: Package
    timings_ms: dict[str, float]
    volumes_mm3: tuple[float, ...]
    touches_edge: bool
    at_mm: Triple | None
    label_statistics: LabelStatistics
    remarks: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """What a physicist should look at before trusting the labels; empty where nothing is."""
        forced = ["the route was forced"] if self.route.forced else []
        return [*self.remarks, *self.label_flags(), *forced]

    def label_flags(self) -> list[str]:
        """The flags of the labels themselves, for any of which a strict run refuses them."""
        model = self.package.manifest.model
        names = model.labels[1:]
        found = []
        if model.label_distribution is not None:
            found += doubtful_label_flags(
                self.label_statistics,
                self.route.route,
                model.label_distribution,
                names,
                model.channels,
            )
        present = np.bincount(self.labels.ravel(), minlength=len(model.labels))[1:] > 0
        for name, volume, (low, high), is_there in zip(
            names, self.volumes_mm3, model.volume_range_mm3, present, strict=True
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
        if self.touches_edge:
            found.append("a label touches the edge of the segmented field of view")
        return found

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
            "volumes_mm3": dict(zip(manifest.model.labels[1:], self.volumes_mm3, strict=True)),
            "largest_resampling_factor": max(
                math.exp(abs(math.log(f))) for f in self.route.factors
            ),
            "flags": self.flags(),
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings_ms.items()},
        }

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
        contents = self.files(
            Path(labels),
            report=None if report is None else Path(report),
            picture=None if picture is None else Path(picture),
        )
        with Stopwatch(self.timings_ms)("write"):
            write_files(contents, overwrite=overwrite)

    def files(
        self, labels: Path, *, report: Path | None = None, picture: Path | None = None
    ) -> dict[Path, bytes]:
        """What `save` writes to these paths."""
        with Stopwatch(self.timings_ms)("encode"):
            compressed = is_compressed(labels)
            contents = {labels: label_bytes(self.labels, self.scan, self.grid, compressed)}
            contents[names_path(labels)] = self._names_tsv()
            if picture is not None:
                contents[picture] = self._picture()
        if report is not None:
            contents[report] = self.report_json()
        return contents

    def _picture(self) -> bytes:
        names = self.package.manifest.model.labels[1:]
        legend = [
            f"{name} {volume:.0f} mm3" for name, volume in zip(names, self.volumes_mm3, strict=True)
        ]
        labels = Volume(self.labels, self.grid)
        return picture_png(self.scan.volume, labels, str(self.route), legend)

    def _names_tsv(self) -> bytes:
        names = self.package.manifest.model.labels
        rows = [f"{value}\t{name}" for value, name in enumerate(names)]
        return ("index\tname\n" + "\n".join(rows) + "\n").encode()
