"""Writes real scans and their labels from Python, which the C++ library must reproduce.

    python native/tests/make_scans.py FOLDER

Scans are raw arrays with their strides, listed in FOLDER/index.json: the examples; where
../shared/data/hippocampus exists, 20 of its scans at four spacings; with torch, a scan of three
channels.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rare_trt import Grid, Scan, Segmenter, Volume, read_scan
from rare_trt.package.manifest import Manifest
from rare_trt.package.reading import Package, open_package
from rare_trt.package.writing import write_package
from rare_trt.scan.geometry import Triple
from rare_trt.training.downsampling import average_blocks, pad_to_multiple

REPOSITORY: Final = Path(__file__).parents[2]
REAL: Final = REPOSITORY.parent / "shared" / "data" / "hippocampus" / "images"
REAL_SCANS: Final = 20


@dataclass(frozen=True, eq=False)
class Case:
    """A scan in memory, and how to segment it."""

    name: str
    package: str
    volume: Volume
    route: int | None = None
    at_mm: list[Triple] | None = None


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    packages = write_packages(folder)
    selected = list(cases())
    if find_spec("torch") is not None:
        packages["three"], more = three_channels(folder)
        selected += more
    segmenters = {name: Segmenter(package, "openvino") for name, package in packages.items()}
    listed = [write_case(case, segmenters[case.package], folder) for case in selected]
    paths = {name: str(package.folder.resolve()) for name, package in packages.items()}
    index = {"packages": paths, "scans": listed}
    (folder / "index.json").write_text(json.dumps(index, indent=1))


def write_packages(folder: Path) -> dict[str, Package]:
    """The packages that segment the scans: as shipped, of format 1, tiled, with a largest shape
    below what memory allows, with another arithmetic first, and without fp16."""
    shipped = open_package("hippocampus")
    tiny = open_package(REPOSITORY / "tests" / "data" / "tiny_v1.rare")
    return {
        "hippocampus": shipped,
        "tiny": tiny,
        "tiled": rewrite(tiny, tiled(tiny.manifest, known=False), folder / "tiled.rare"),
        "small": rewrite(tiny, tiled(tiny.manifest, known=True), folder / "small.rare"),
        "reordered": rewrite(shipped, reordered(shipped.manifest), folder / "reordered.rare"),
        "fp32": rewrite(shipped, over_budget(shipped.manifest), folder / "fp32.rare"),
    }


def rewrite(package: Package, manifest: Manifest, folder: Path) -> Package:
    contents = {name: package.read(name) for name in package.manifest.files}
    return write_package(folder, manifest, contents, overwrite=True)


def tiled(manifest: Manifest, *, known: bool) -> Manifest:
    """A largest working shape so small that every scan is run in tiles, unless the network is
    `known` and its memory can be computed."""
    routes = tuple(
        replace(route, profile=replace(route.profile, max=route.profile.min))
        for route in manifest.routes
    )
    loose = tuple(replace(golden, max_disagreement={"fp32": 0.5}) for golden in manifest.golden)
    network = dict(manifest.model.network)
    if not known:
        del network["filters"]
    model = replace(manifest.model, network=network)
    return replace(manifest, model=model, routes=routes, golden=loose)


def reordered(manifest: Manifest) -> Manifest:
    """The second fastest variant of each route comes first."""
    entries = tuple(
        replace(entry, variants=(*entry.variants[1:], *entry.variants[:1]))
        for entry in manifest.calibration
    )
    return replace(manifest, calibration=entries)


def over_budget(manifest: Manifest) -> Manifest:
    """No variant keeps the Dice budget, so float32 runs."""
    entries = tuple(replace(entry, variants=()) for entry in manifest.calibration)
    return replace(manifest, calibration=entries)


def three_channels(folder: Path) -> tuple[Package, list[Case]]:
    """A package of three channels, and a scan with them last, first, and on permuted axes."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from three_channels import three_channel_package, three_channel_scan

    scan = three_channel_scan(REPOSITORY / "examples" / "hippocampus_1mm.nii.gz")
    last = Volume(np.ascontiguousarray(scan.voxels), scan.grid)
    first = np.ascontiguousarray(np.moveaxis(scan.voxels, 3, 0))
    scans = {
        "channels last": last,
        "channels first": Volume(np.moveaxis(first, 0, 3), scan.grid),
        "channels permuted": permuted(last, (2, 0, 1)),
    }
    package = three_channel_package(folder / "three.rare", scan)
    return package, [Case(name, "three", volume) for name, volume in scans.items()]


def cases() -> Iterator[Case]:
    one = read_scan(REPOSITORY / "examples" / "hippocampus_1mm.nii.gz").volume
    two = read_scan(REPOSITORY / "examples" / "hippocampus_2mm.nii.gz").volume
    yield Case("example at 1 mm", "hippocampus", one)
    yield Case("example at 2 mm", "hippocampus", two)
    for route in range(4):
        yield Case(f"1 mm on route {route}", "hippocampus", one, route=route)
    yield from wrong_scans(one)
    yield from in_other_memory(one)
    yield from elsewhere(one)
    for name in ("tiny", "tiled", "small", "reordered", "fp32"):
        yield Case(f"1 mm, {name}", name, one)
        yield Case(f"2 mm, {name}", name, two)
    if REAL.is_dir():
        yield from real_scans()


def wrong_scans(one: Volume) -> Iterator[Case]:
    """Scans whose labels are doubted: turned front to back and upside down, inverted, noise."""
    rng = np.random.default_rng(0)
    made = {
        "front to back": one.voxels[:, ::-1],
        "upside down": one.voxels[:, :, ::-1],
        "inverted": one.voxels.max() - one.voxels,
        "noise": rng.rayleigh(1.0, one.voxels.shape).astype(np.float32),
    }
    for name, voxels in made.items():
        yield Case(name, "hippocampus", Volume(np.ascontiguousarray(voxels), one.grid))


def in_other_memory(one: Volume) -> Iterator[Case]:
    """The same scan in other types and orders of memory, and on permuted axes."""
    values = one.voxels.astype(np.float64)
    for dtype in (np.uint8, np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64):
        scaled = values / values.max() * 250 if dtype == np.uint8 else values
        voxels = np.ascontiguousarray(scaled.astype(dtype))
        yield Case(f"1 mm as {np.dtype(dtype).name}", "hippocampus", Volume(voxels, one.grid))
    offset = Volume(values + 1e7, one.grid)
    yield Case("1 mm with an offset", "hippocampus", offset)
    for order in ((2, 0, 1), (1, 0, 2)):
        yield Case(f"1 mm, axes {order}", "hippocampus", permuted(one, order))
    gaps = np.zeros((*one.grid.shape, 3), one.voxels.dtype)
    gaps[..., 1] = one.voxels
    yield Case("1 mm with gaps", "hippocampus", Volume(gaps[..., 1], one.grid))


def permuted(volume: Volume, order: tuple[int, int, int]) -> Volume:
    """The scan with its voxel axes in another order, the first one reversed in memory."""
    voxels = volume.voxels.transpose(*order, *range(3, volume.voxels.ndim))[::-1]
    affine = volume.grid.affine[:, [*order, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (voxels.shape[0] - 1)
    affine[:3, 0] *= -1
    i, j, k = voxels.shape[:3]
    return Volume(voxels, Grid((i, j, k), affine))


def elsewhere(one: Volume) -> Iterator[Case]:
    """The scan tilted, padded, with other spacings, and inside a larger one."""
    affine = one.grid.affine.copy()
    c, s = np.cos(0.3), np.sin(0.3)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    yield Case("1 mm, tilted", "hippocampus", Volume(one.voxels, Grid(one.grid.shape, affine)))
    padded = np.pad(one.voxels, 5)
    grid = one.grid.box((-5, -5, -5), one.grid.shape)
    i, j, k = padded.shape
    yield Case("1 mm, padded", "hippocampus", Volume(padded, Grid((i, j, k), grid.affine)))
    for spacing in ((1.0, 1.0, 0.8), (1.3, 1.1, 1.2), (0.9, 1.25, 1.5)):
        stretched = one.grid.regrid(spacing, one.grid.shape)
        yield Case(f"spacing {spacing}", "hippocampus", Volume(one.voxels, stretched))
    thick = np.ascontiguousarray(one.voxels[:, :, ::4])
    affine = one.grid.affine.copy()
    affine[:3, 2] *= 4
    i, j, k = thick.shape
    yield Case("slices of 4 mm", "hippocampus", Volume(thick, Grid((i, j, k), affine)))
    noise = np.random.default_rng(5).integers(0, 40, (90, 110, 100)).astype(one.voxels.dtype)
    i, j, k = one.grid.shape
    noise[30 : 30 + i, 25 : 25 + j, 35 : 35 + k] = one.voxels
    grid = Grid(noise.shape, one.grid.box((-30, -25, -35), one.grid.shape).affine)
    x, y, z = grid.world_mm(np.array([30 + i / 2, 25 + j / 2, 35 + k / 2])).tolist()
    head = Volume(noise, grid)
    yield Case("around a point", "hippocampus", head, at_mm=[(x, y, z)])
    yield Case("around two points", "hippocampus", head, at_mm=[(x, y, z), (x + 9, y - 4, z + 2)])
    apart = [(x + 6, y, z), (x - 6, y, z), (x, y + 5, z)]
    yield Case("around three points", "hippocampus", head, at_mm=apart)
    i, j, k = (n // 2 for n in head.grid.shape)
    halved = Volume(
        head.voxels[: 2 * i : 2, : 2 * j : 2, : 2 * k : 2],
        head.grid.regrid((2.0, 2.0, 2.0), (i, j, k)),
    )
    yield Case("2 mm around two points", "hippocampus", halved, at_mm=apart[:2])
    yield Case(
        "permuted around three points", "hippocampus", permuted(head, (2, 0, 1)), at_mm=apart
    )


def real_scans() -> Iterator[Case]:
    """Scans of the shared data as they are and averaged to 2, 4 and 8 mm."""
    files = sorted(REAL.glob("*.nii.gz"))
    for path in files[:: len(files) // REAL_SCANS][:REAL_SCANS]:
        volume = read_scan(path).volume
        name = path.name.removesuffix(".nii.gz")
        yield Case(f"{name} at 1 mm", "hippocampus", volume)
        whole, _ = pad_to_multiple(
            volume.voxels[None].astype(np.float32), np.zeros(volume.grid.shape, np.uint8), 8
        )
        for factor in (2, 4, 8):
            voxels = average_blocks(whole, factor)[0]
            i, j, k = voxels.shape
            affine = volume.grid.affine.copy()
            affine[:3, :3] *= factor
            affine[:3, 3] = volume.grid.world_mm(np.full(3, (factor - 1) / 2))
            grid = Grid((i, j, k), affine)
            yield Case(f"{name} at {factor} mm", "hippocampus", Volume(voxels, grid))


def write_case(case: Case, segmenter: Segmenter, folder: Path) -> dict[str, Any]:
    """Segments in Python, writes scan and labels, and returns their entry of the index."""
    voxels, grid = case.volume.voxels, case.volume.grid
    result = segmenter.segment(Scan(case.volume), route=case.route, at=case.at_mm)
    stem = case.name.replace(" ", "_")
    memory, offset = memory_of(voxels)
    (folder / f"{stem}.voxels").write_bytes(memory)
    (folder / f"{stem}.labels").write_bytes(result.labels.tobytes(order="F"))
    return {
        "name": case.name,
        "package": case.package,
        "voxels": f"{stem}.voxels",
        "labels": f"{stem}.labels",
        "dtype": voxels.dtype.name,
        "offset": offset,
        "shape": voxels.shape[:3],
        "channels": voxels.shape[3] if voxels.ndim == 4 else 1,
        # The step between channels last, where there are several.
        "strides": [*voxels.strides, 0][:4],
        "affine": grid.affine.ravel().tolist(),
        "route": case.route,
        "at_mm": case.at_mm,
        "expected_route": result.route.route,
        "expected_arithmetic": result.precision,
        "touches_edge": result.touches_edge,
        "disputed_voxels": sum(count for _, _, count in result.disputes),
        "volumes_mm3": list(result.volumes_mm3.values()),
        "label_flags": result.label_flags,
    }


def memory_of(voxels: NDArray[Any]) -> tuple[bytes, int]:
    """The bytes from the first to the last voxel, and the offset of voxel (0, 0, 0) in them."""
    low, high = byte_bounds(voxels)
    start = voxels.__array_interface__["data"][0]
    return ctypes.string_at(low, high - low), start - low


def byte_bounds(voxels: NDArray[Any]) -> tuple[int, int]:
    """The first address of an array, and the one after its last byte."""
    low = high = voxels.__array_interface__["data"][0]
    for count, stride in zip(voxels.shape, voxels.strides, strict=True):
        reach = (count - 1) * stride
        low, high = low + min(0, reach), high + max(0, reach)
    return low, high + voxels.itemsize


if __name__ == "__main__":
    main(Path(sys.argv[1]))
