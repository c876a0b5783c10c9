"""Writes the conformance vectors: inputs with the results of Python, which C++ must reproduce.

    python native/tests/make_vectors.py

Both test suites read native/tests/vectors (tests/test_native_vectors.py, native/tests/*_test.cpp).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import msgspec
import numpy as np
from numpy.typing import NDArray

from rare_trt.backends import Arithmetic
from rare_trt.errors import PackageError, ScanError
from rare_trt.package.manifest import EngineEntry, Manifest
from rare_trt.package.manifest_json import SEAL_BYTES, json_with_seal, manifest_from_json
from rare_trt.package.reading import engines_folder
from rare_trt.plan.memory import MIB, MemoryNeeds, bytes_per_voxel, tile_shape
from rare_trt.plan.resampling import (
    ResamplingPlan,
    majority_vote,
    plan_resampling,
    subvoxel_counts,
    tiles,
)
from rare_trt.plan.routing import Route, choose_route
from rare_trt.scan.field_of_view import FieldOfView, box_at, select_regions, without_padding
from rare_trt.scan.geometry import Canonical, Grid, Shape, Triple, Volume
from rare_trt.scan.intensity import IntensityRule, normalise
from rare_trt.scan.out_of_distribution import NAMES, label_statistics
from rare_trt.sessions.compatibility import incompatibility
from rare_trt.sessions.device import Gpu
from rare_trt.sessions.machine import Machine
from rare_trt.storage.files import sha256

VECTORS: Final = Path(__file__).parent / "vectors"
TINY: Final = Path(__file__).parents[2] / "tests" / "data" / "tiny_v1.rare" / "manifest.json"

CLASSES: Final = 3

# Where the user's own folder lies.
FOLDER_VARIABLES: Final = ("RARE_TRT_HOME", "XDG_DATA_HOME", "HOME")

ROUTES: Final = tuple(
    Route(index, 2.0**index, (0.95, 1.05), 16 >> index, (80 >> index, 96 >> index, 80 >> index))
    for index in range(4)
)
LIMITS_MM: Final = (0.5, 10.0)
REFUSED: Final = {"refused": True}


def main() -> None:
    VECTORS.mkdir(exist_ok=True)
    for name, cases in vectors().items():
        lines = ",\n".join(json.dumps(case) for case in cases)
        (VECTORS / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def vectors() -> dict[str, list[dict[str, Any]]]:
    """The vectors of every file."""
    return {
        "routes": [route_vector(*case) for case in route_cases()],
        "grids": [grid_vector(shape, affine) for shape, affine in grid_cases()],
        "tile_shapes": [tile_shape_vector(*case) for case in tile_shape_cases()],
        "plans": [plan_vector(*case) for case in plan_cases()],
        "intensities": [intensity_vector(*case) for case in intensity_cases()],
        "paddings": [padding_vector(voxels) for voxels in padding_cases()],
        "boxes": [box_vector(*case) for case in box_cases()],
        "regions": [region_vector(*case) for case in region_cases()],
        "majority_votes": [majority_vote_vector(*case) for case in majority_vote_cases()],
        "label_statistics": [label_statistics_vector(*case) for case in label_cases()],
        "manifests": [manifest_vector(case) for case in manifest_cases()],
        "compatibility": [compatibility_vector(*case) for case in compatibility_cases()],
        "engines_folders": [engines_folder_vector(case) for case in engines_folder_cases()],
    }


def engines_folder_cases() -> list[dict[str, str]]:
    """Environments; a variable that is not named is not set."""
    return [
        {"RARE_TRT_HOME": "/data/rare", "XDG_DATA_HOME": "/data/xdg", "HOME": "/home/user"},
        {"RARE_TRT_HOME": "below/here", "HOME": "/home/user"},
        {"RARE_TRT_HOME": "", "XDG_DATA_HOME": "/data/xdg", "HOME": "/home/user"},
        {"XDG_DATA_HOME": "/data/xdg/", "HOME": "/home/user"},
        {"XDG_DATA_HOME": "", "HOME": "/home/user"},
        {"HOME": "/home/user"},
        {"HOME": "/home/user/"},
    ]


def engines_folder_vector(environment: dict[str, str]) -> dict[str, Any]:
    digest = "0123456789abcdef" * 4
    others = {k: v for k, v in os.environ.items() if k not in FOLDER_VARIABLES}
    with patch.dict(os.environ, {**others, **environment}, clear=True):
        folder = engines_folder(digest)
    return {"environment": environment, "manifest_sha256": digest, "folder": str(folder)}


def route_cases() -> list[tuple[Triple, int | None]]:
    even = [0.5, 0.4999, 0.49, 0.8, 1.0, 1.04, 1.06, 1.5, 1.5999, 1.6, 1.7, 2.0, 2.1, 3.0, 3.2, 4.0]
    even += [5.0, 6.4, 8.0, 9.5, 10.0, 10.009, 10.02, float("nan")]
    uneven = [(1.0, 1.0, 5.0), (5.0, 1.0, 1.0), (0.9, 0.9, 3.0), (1.0, 1.0, 2.583)]
    uneven += [
        (0.5, 0.5, 10.0),
        (2.0, 2.0, 1.0),
        (4.0, 4.1, 8.0),
        (1.6, 1.6, 1.6000001),
        (0.3, 1.0, 1.0),
    ]
    cases: list[tuple[Triple, int | None]] = [((s, s, s), None) for s in even]
    cases += [(spacing, None) for spacing in uneven]
    return [*cases, ((1.0, 1.0, 1.0), 3), ((8.0, 8.0, 8.0), 0), ((1.0, 1.0, 1.0), 4)]


def route_vector(spacing: Triple, forced: int | None) -> dict[str, Any]:
    given = {"spacing_mm": [number(s) for s in spacing], "forced": forced}
    try:
        return given | asdict(choose_route(spacing, ROUTES, LIMITS_MM, forced)) | {"forced": forced}
    except ScanError:
        return given | REFUSED


def rotated(degrees: Sequence[float]) -> NDArray[np.float64]:
    """A rotation by Euler angles about x, y and z."""
    x, y, z = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    product: NDArray[np.float64] = about_x @ about_y @ about_z
    return product


def affine(
    spacing: Triple,
    order: Sequence[int] = (0, 1, 2),
    signs: Sequence[int] = (1, 1, 1),
    degrees: Sequence[float] = (0, 0, 0),
    origin: Triple = (-20.0, 3.5, 11.25),
) -> NDArray[np.float64]:
    """World axes `order`, flipped by `signs`, tilted by `degrees`, rounded as files store it."""
    found = np.eye(4)
    axes = np.eye(3)[:, list(order)] * signs
    found[:3, :3] = rotated(degrees) @ axes * spacing
    found[:3, 3] = origin
    return found.astype(np.float32).astype(np.float64)


def grid_cases() -> list[tuple[Shape, NDArray[np.float64]]]:
    shape: Shape = (5, 6, 7)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    signs = [(1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, -1), (-1, 1, 1)]
    cases = [
        (shape, affine((1.0, 2.0, 3.5), order, sign))
        for order, sign in zip(orders, signs, strict=True)
    ]
    tilts = [(10, -20, 5), (30, 30, 0), (44, 3, 2), (40, 40, 10), (50, 35, 60), (100, -170, 33)]
    cases += [(shape, affine((0.9, 0.9, 4.0), degrees=tilt)) for tilt in tilts]
    cases += [(shape, affine((1, 1, 1), (2, 0, 1), (-1, 1, 1), tilt)) for tilt in tilts]
    flat, sheared, barely, endless = (affine((1, 1, 1)) for _ in range(4))
    flat[:3, 1] = 0
    sheared[0, 1] = 0.05
    barely[0, 1] = 0.03
    endless[1, 3] = np.inf
    return [*cases, (shape, flat), (shape, sheared), (shape, barely), (shape, endless)]


def grid_vector(shape: Shape, matrix: NDArray[np.float64]) -> dict[str, Any]:
    given = {"shape": shape, "affine": numbers(matrix)}
    try:
        canonical = Canonical(Grid(shape, matrix))
    except ScanError:
        return given | REFUSED
    # nibabel gives the world axis of each voxel axis; the vector the voxel axis of each world axis.
    ornt = canonical._ornt.astype(int)
    source = [int(np.flatnonzero(ornt[:, 0] == world)[0]) for world in range(3)]
    return given | {
        "source": source,
        "flipped": [bool(ornt[axis, 1] < 0) for axis in source],
        "canonical_shape": canonical.grid.shape,
        "canonical_affine": numbers(canonical.grid.affine),
        "spacing_mm": canonical.grid.spacing_mm,
        "extent_mm": canonical.grid.extent_mm,
    }


def plan_cases() -> list[tuple[Shape, NDArray[np.float64], int, Shape | None]]:
    """Shape, affine, route, and the largest working shape where it is tiled."""
    near = affine((1.02, 0.97, 1.0))
    return [
        ((9, 10, 8), affine((1.0, 1.0, 1.0)), 0, None),
        ((9, 10, 8), near, 0, None),
        ((9, 10, 8), affine((0.7, 0.8, 1.2)), 0, None),
        ((5, 6, 7), affine((2.0, 2.0, 2.0), degrees=(10, 5, 3)), 1, None),
        ((5, 6, 3), affine((1.0, 1.0, 5.0)), 1, None),
        ((12, 9, 2), affine((0.5, 0.8, 8.0), degrees=(0, 12, 0)), 2, None),
        ((3, 4, 3), affine((8.0, 8.2, 7.9)), 3, None),
        ((3, 4, 1), affine((8.0, 8.0, 10.0)), 0, None),
        ((30, 10, 8), affine((1.0, 1.0, 1.0)), 0, (16, 16, 16)),
        ((37, 21, 19), affine((1.0, 1.0, 1.0)), 1, (8, 8, 8)),
        ((21, 9, 14), affine((1.3, 1.1, 1.2), degrees=(4, 0, 0)), 0, (16, 16, 16)),
        ((33, 33, 3), affine((0.9, 0.9, 6.0)), 2, (4, 4, 4)),
        ((9, 10, 420), affine((1.0, 1.0, 1.0)), 0, (16, 16, 160)),
    ]


def tile_shape_cases() -> list[tuple[Shape, Shape, int, int, int, Arithmetic, int, int]]:
    """Shapes of a scan at 1 mm and of its segmented region, route, channels, filters,
    arithmetic, bytes per voxel, limit in MiB."""
    cube = (256, 256, 256)
    whole: list[tuple[Shape, int, int, int, Arithmetic, int, int]] = [
        (cube, 0, 1, 16, "fp16", 2, 8192),
        (cube, 0, 1, 16, "fp16", 2, 2048),
        (cube, 0, 1, 16, "int8+bf16", 4, 2048),
        (cube, 0, 1, 16, "fp32", 2, 600),
        (cube, 2, 1, 16, "fp16+bf16", 2, 2048),
        ((240, 240, 155), 0, 4, 32, "int8", 2, 4096),
        ((301, 90, 77), 1, 1, 16, "fp32", 8, 900),
        ((20, 30, 40), 3, 1, 16, "fp32", 1, 400),
        # The output grid has 512 voxels per working voxel.
        ((320, 320, 320), 3, 1, 16, "fp16", 2, 2048),
        ((320, 320, 320), 3, 1, 16, "fp16", 2, 1200),
    ]
    return [
        *((scan, scan, *rest) for scan, *rest in whole),
        ((512, 512, 600), (48, 72, 48), 0, 1, 16, "int8", 2, 2048),
        ((512, 512, 600), (48, 72, 48), 0, 1, 16, "int8", 2, 1024),
    ]


def tile_shape_vector(
    scan: Shape,
    shape: Shape,
    index: int,
    channels: int,
    filters: int,
    computed: Arithmetic,
    stored: int,
    limit_mib: int,
) -> dict[str, Any]:
    grid, route = Grid(shape, np.eye(4)), ROUTES[index]
    per_voxel = bytes_per_voxel({"filters": filters}, index, computed)
    assert per_voxel is not None
    found: dict[str, Any] = {
        "scan": scan,
        "shape": shape,
        "route": index,
        "channels": channels,
        "filters": filters,
    }
    found |= {"arithmetic": computed, "stored": stored, "limit": limit_mib * MIB}
    found |= {"per_voxel": per_voxel, "classes": CLASSES}
    try:
        steps, image = plan_resampling(grid, route, grid), (channels, *shape)
        stack = (*scan, channels)
        tile = tile_shape(
            steps, route, MemoryNeeds(stack, stored, image, CLASSES, per_voxel), limit_mib * MIB
        )
    except ScanError:
        return found | REFUSED
    return found | {"tile": tile}


def plan_vector(
    shape: Shape, matrix: NDArray[np.float64], index: int, max_shape: Shape | None
) -> dict[str, Any]:
    grid, route = Grid(shape, matrix), ROUTES[index]
    parts = subvoxel_counts(grid, 1.0)
    steps = plan_resampling(grid, route, grid.subdivide(parts))
    found: dict[str, Any] = {"shape": shape, "affine": numbers(matrix), "route": index}
    found |= {"max_shape": max_shape, "parts": parts, "core": steps.core}
    if max_shape is None:
        found |= {"in": [sparse(one) for one in steps.in_matrices]}
        return found | {"out": [sparse(one) for one in steps.out_matrices]}
    return found | {"tiles": tile_vectors(steps, max_shape)}


def tile_vectors(steps: ResamplingPlan, max_shape: Shape) -> list[dict[str, Any]]:
    return [
        {
            "image": [[part.start, part.stop] for part in tile.image],
            "output": [[part.start, part.stop] for part in tile.output],
            "in_shape": [one.shape for one in tile.in_matrices],
            "out_shape": [one.shape for one in tile.out_matrices],
            "in_sum": [float(one.sum(dtype=np.float64)) for one in tile.in_matrices],
            "out_sum": [float(one.sum(dtype=np.float64)) for one in tile.out_matrices],
        }
        for tile in tiles(steps, max_shape)
    ]


def sparse(matrix: NDArray[np.float32]) -> dict[str, Any]:
    """Per row the first column that is not zero, and the values from there to the last one."""
    rows = []
    for row in matrix:
        columns = np.flatnonzero(row)
        first, stop = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
        rows.append([first, *numbers(row[first:stop])])
    return {"columns": matrix.shape[1], "rows": rows}


def intensity_cases() -> list[tuple[NDArray[Any], IntensityRule]]:
    rng = np.random.default_rng(7)
    smooth = rng.normal(size=(4, 5, 6)).cumsum(axis=2) * 20 + 100
    rule, narrow = IntensityRule(), IntensityRule((5.0, 90.0), 0.3)
    hot = smooth.copy()
    hot[0, 0, 0] = 1e6
    # As far on the other side, and a range beyond that of float32.
    missing = smooth.copy()
    missing[1, 2, 3] = -3e38
    endless = np.linspace(-3e38, 3e38, 24).reshape(2, 3, 4)
    two = np.stack([smooth, -3 * smooth + 7], axis=3)
    types = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]
    cases: list[tuple[NDArray[Any], IntensityRule]] = [
        (np.clip(smooth, 0, 127).astype(dtype), rule) for dtype in types
    ]
    cases += [(smooth.astype(np.float32), rule), (smooth, rule), (hot.astype(np.float32), narrow)]
    cases += [(smooth + 1e7, rule), (two.astype(np.int16), narrow)]
    cases += [(missing.astype(np.float32), narrow), (smooth.astype(np.float32) + 1e5, rule)]
    cases += [(endless.astype(np.float32), rule)]
    # A foreground of one value.
    cases += [((smooth > 100).astype(np.uint8), rule)]
    return [*cases, (np.full((2, 3, 4), 9, np.int16), rule), (np.zeros((2, 2, 2)), rule)]


def intensity_vector(voxels: NDArray[Any], rule: IntensityRule) -> dict[str, Any]:
    given = stored(voxels) | asdict(rule)
    try:
        return given | {"normalised": numbers(normalise(voxels, rule).ravel())}
    except ScanError:
        return given | REFUSED


def padding_cases() -> list[NDArray[Any]]:
    rng = np.random.default_rng(3)
    core = rng.integers(0, 50, (3, 4, 3))
    zeros = np.pad(core, ((2, 1), (0, 3), (1, 0))).astype(np.int16)
    seven = np.pad(core, 2, constant_values=7).astype(np.float32)
    two = np.stack([zeros, np.pad(core, ((1, 2), (3, 0), (0, 1)))], axis=3).astype(np.uint8)
    single = np.zeros((4, 4, 4), np.uint8)
    single[1, 2, 3] = 1
    return [zeros, seven, two, single, core.astype(np.uint16), np.full((3, 3, 3), 5, np.int8)]


def padding_vector(voxels: NDArray[Any]) -> dict[str, Any]:
    box = without_padding(voxels)
    return stored(voxels) | {"box": [[part.start, part.stop] for part in box]}


def box_cases() -> list[tuple[Shape, NDArray[np.float64], Triple]]:
    """Shape, affine, point in world mm."""
    shape: Shape = (40, 50, 60)
    plain, tilted = affine((1.0, 1.2, 2.0)), affine((1.0, 1.2, 2.0), degrees=(8, -4, 3))
    inside = [(0.0, 30.0, 60.0), (-19.0, 4.0, 12.0), (18.4, 61.0, 128.0), (0.5, 30.6, 61.0)]
    outside = [(-20.6, 30.0, 60.0), (0.0, 300.0, 60.0), (float("nan"), 0.0, 0.0)]
    return [(shape, matrix, p) for matrix in (plain, tilted) for p in (*inside, *outside)]


def box_vector(shape: Shape, matrix: NDArray[np.float64], point: Triple) -> dict[str, Any]:
    size = (12.0, 15.0, 9.0)
    given = {"shape": shape, "affine": numbers(matrix), "size_mm": size}
    given["at_mm"] = [number(value) for value in point]
    try:
        box = box_at(Grid(shape, matrix), point, size)
    except ScanError:
        return given | REFUSED
    return given | {"box": [[part.start, part.stop] for part in box]}


def region_cases() -> list[tuple[Shape, NDArray[np.float64], Triple | None]]:
    """Shape and affine of a scan without padding, and the point of the box."""
    view = affine((1.0, 1.0, 2.0), (2, 0, 1), (-1, 1, 1), (3, 2, 1), (0.0, 0.0, 0.0))
    return [
        ((10, 12, 9), view, None),
        ((4, 12, 9), view, None),
        ((10, 12, 60), view, None),
        ((40, 42, 60), view, (22.0, 60.0, -18.0)),
        ((40, 42, 60), view, (8.0, 112.0, -30.5)),
        ((40, 42, 60), view, (0.0, 0.0, 0.0)),
        ((40, 42, 60), view, (22.0, 60.0, 18.0)),
    ]


FIELD_OF_VIEW: Final = FieldOfView((8.0, 6.0, 6.0), (20.0, 9.0, 10.0), (40.0, 20.0, 30.0))


def region_vector(
    shape: Shape, matrix: NDArray[np.float64], at_mm: Triple | None
) -> dict[str, Any]:
    # Every slice varies.
    voxels = (np.arange(np.prod(shape)).reshape(shape) % 251).astype(np.uint8)
    given: dict[str, Any] = {"shape": shape, "affine": numbers(matrix), "at_mm": at_mm}
    given["field_of_view_mm"] = asdict(FIELD_OF_VIEW)
    try:
        points = None if at_mm is None else [at_mm]
        (region,) = select_regions(Volume(voxels, Grid(shape, matrix)), FIELD_OF_VIEW, points)
    except ScanError:
        return given | REFUSED
    return given | {
        "box": [[part.start, part.stop] for part in region.box],
        "region_affine": numbers(region.grid.affine),
        "sum": int(region.voxels.sum(dtype=np.int64)),
        "first": int(region.voxels[0, 0, 0]),
        "last": int(region.voxels[-1, -1, -1]),
    }


def majority_vote_cases() -> list[tuple[NDArray[np.uint8], Shape]]:
    rng = np.random.default_rng(11)
    cases: list[tuple[NDArray[np.uint8], Shape]] = []
    for shape, parts in [((4, 6, 4), (2, 3, 2)), ((3, 2, 5), (1, 1, 1)), ((2, 2, 9), (1, 2, 3))]:
        cases.append((rng.integers(0, 4, shape).astype(np.uint8), parts))
    return cases


def majority_vote_vector(fine: NDArray[np.uint8], parts: Shape) -> dict[str, Any]:
    labels = majority_vote(fine, parts, 4)
    given = {"shape": fine.shape, "fine": fine.ravel().tolist(), "parts": parts}
    return given | {"labels": labels.ravel().tolist()}


def label_cases() -> list[tuple[Grid, Shape, int, NDArray[np.uint8]]]:
    """Grids, parts of their voxels, channels, and labels of the parts: blocks inside the volume, at
    its faces, one alone, none."""
    cases = []
    tilted = Grid((6, 7, 8), affine((2.0, 1.5, 3.0), degrees=(10, -5, 20)))
    fine = Grid((9, 8, 7), affine((0.8, 0.8, 0.8)))
    places = [((2, 5), (2, 6), (1, 5)), ((5, 9), (3, 6), (4, 7)), ((0, 2), (0, 8), (0, 3))]
    for grid, parts, channels in ((tilted, (2, 1, 3), 2), (fine, (1, 1, 1), 1)):
        shape = grid.subdivide(parts).shape
        for used in (places[:2], places[1:], places[:1], []):
            labels = np.zeros(shape, np.uint8)
            for label, box in enumerate(used, start=1):
                labels[tuple(slice(*ends) for ends in box)] = label
            cases.append((grid, parts, channels, labels))
    return cases


def label_statistics_vector(
    grid: Grid, parts: Shape, channels: int, labels: NDArray[np.uint8]
) -> dict[str, Any]:
    rng = np.random.default_rng(13)
    image = rng.normal(size=(channels, *grid.shape)).cumsum(axis=3).astype(np.float32)
    found = label_statistics(image, grid, labels, grid.subdivide(parts), CLASSES, IntensityRule())
    return {
        "shape": grid.shape,
        "affine": numbers(grid.affine),
        "parts": parts,
        "image": image.ravel().tolist(),
        "channels": channels,
        "labels": labels.ravel().tolist(),
        "label_shape": [number(value) for value in found.shape],
        "content": [number(value) for value in found.content],
        "touch_edge": found.touch_edge,
    }


def manifest_cases() -> list[dict[str, Any]]:
    """A whole file, or changes of the small package's as JSON Patch (RFC 6902)."""
    engine = engine_values()
    calibrated = calibration_values()
    table = {"sha256": "0" * 64, "bytes": 3}
    three = [
        change("replace", "/format_version", 3),
        change("add", "/engines", []),
        change("add", "/calibration", []),
    ]
    with_engine = [*three, change("add", "/engines/-", engine)]
    with_engine += [change("add", "/files/engines~1one.engine", table)]
    with_variant = [*three, change("add", "/calibration/-", calibrated)]
    with_variant += [change("add", "/files/calibration~1route0.json", table)]
    first = "/golden/0/max_disagreement"
    twice = {"route": 0, "ranges": 2 * seen_values()["routes"][0]["ranges"]}
    patches: list[list[dict[str, Any]]] = [
        [],
        three,
        [change("replace", "/format_version", 2), change("add", "/engines", [])],
        [change("replace", "/format_version", 2)],
        [change("replace", "/format_version", 4)],
        [change("replace", "/format_version", 5)],
        [change("replace", "/format_version", 6)],
        [change("replace", "/format_version", True)],
        [*three, change("add", "/sha256", "0" * 64)],
        [change("add", "/sha256", "0" * 64)],
        [change("replace", "/format_version", 1.0)],
        [change("replace", "/format_version", "1")],
        [change("remove", "/format_version")],
        [change("replace", "/format", "another package")],
        [change("add", "/more", 1)],
        [change("remove", "/model/labels")],
        [change("replace", "/name", "a b")],
        [change("replace", "/name", "x" * 65)],
        [change("replace", "/name", "tiny\n")],
        [change("replace", "/model/base_spacing_mm", 0)],
        [change("replace", "/model/base_spacing_mm", "1")],
        [change("replace", "/model/base_spacing_mm", True)],
        [change("replace", "/model/spacing_limits_mm", [10, 0.5])],
        [change("replace", "/model/spacing_limits_mm", [0.5, 10, 20])],
        [change("replace", "/model/intensity/clip_percentiles", [0.5, 101])],
        [change("replace", "/model/volume_range_mm3", [])],
        [change("replace", "/model/labels", ["background"])],
        [change("replace", "/model/labels/1", "two\nlines")],
        [change("replace", "/model/labels/1", "a line\n")],
        [change("replace", "/model/labels/1", "a\tcolumn")],
        [change("replace", "/model/labels/1", "Hippokampus, größerer Teil")],
        [change("replace", "/model/task", "x" * 251)],
        [change("replace", "/routes/0/multiple", 8.0)],
        [change("replace", "/routes/0/multiple", 8.5)],
        [change("replace", "/routes/0/multiple", 0)],
        [change("replace", "/routes/0/index", 1)],
        [change("replace", "/routes/0/index", 16)],
        [change("replace", "/routes/0/native_band", [1.05, 0.95])],
        [change("replace", "/routes/0/profile/max", [16, 16])],
        [change("replace", "/routes", [])],
        [change("replace", "/graphs/0/route", 7)],
        [change("replace", "/graphs/0/route", (1 << 32))],
        [change("replace", "/graphs/0/file", "graphs/none.onnx")],
        [change("replace", "/graphs/0/file", "../graphs/none.onnx")],
        [change("replace", "/graphs/0/file", "/etc/passwd")],
        [change("replace", "/graphs/0/weights", "golden/route0_min.nii.gz")],
        [change("replace", "/graphs/0/precision", "fp8")],
        [change("remove", "/golden/0/max_disagreement/fp32")],
        [change("add", f"{first}/fp16", 0.5)],
        [change("add", f"{first}/fp64", 0.5)],
        [change("replace", f"{first}/fp32", 1.5)],
        [change("replace", "/golden", [])],
        [change("replace", "/golden/0/kind", "large")],
        [change("add", "/files/..~1outside", table)],
        [change("add", "/files/.hidden", table)],
        [change("add", "/files/a~1~1b", table)],
        [change("add", "/files/extra.bin", table)],
        [change("add", "/files/extra.bin", {**table, "sha256": "F" * 64})],
        [change("add", "/files/extra.bin", {**table, "bytes": -1})],
        [change("add", "/files/extra.bin", {**table, "bytes": 1 << 41})],
        [change("add", "/model/network/anything", {"deep": [None, 1.5, "x"]})],
        [change("add", "/model/network/anything", (1 << 53) + 2)],
        with_engine,
        [*with_engine, change("replace", "/engines/0/precision", "fp16")],
        [*with_engine, change("replace", "/engines/0/gpu", None)],
        [*with_engine, change("replace", "/engines/0/library", "ten")],
        [*with_engine, change("replace", "/engines/0/platform", "plan9-mips")],
        [*with_engine, change("replace", "/engines/0/profile/image/0", [])],
        [*with_engine, change("remove", "/engines/0/profile/out_k")],
        [*with_engine, change("replace", "/engines/0/options/workspace_mib", 0)],
        [*with_engine, change("remove", "/files/engines~1one.engine")],
        with_variant,
        [*with_variant, change("replace", "/calibration/0/route", 9)],
        [*with_variant, change("replace", "/calibration/0/variants/0/arithmetic", "fp16")],
        [*with_variant, change("add", "/calibration/-", calibrated)],
        [*with_variant, change("remove", "/files/calibration~1route0.json")],
        [*with_variant, change("replace", "/calibration/0/reason", 5)],
        [change("add", "/model/seen", None)],
        [change("add", "/model/seen", seen_values())],
        [change("add", "/model/seen", {**seen_values(), "scans": 0})],
        [change("add", "/model/seen", {**seen_values(), "patterns": [[0.0] * 63]})],
        [change("add", "/model/seen", {**seen_values(), "patterns": [[0.0] * 64] * 2})],
        [change("add", "/model/seen", {**seen_values(), "routes": [twice]})],
        [change("add", "/model/seen", {})],
        *([change("add", "/model/label_distribution", values)] for values in label_distributions()),
    ]
    raw = ["", "[]", "7", "{", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "\ufeff{}", "null"]
    raw += ["[" * 3000 + "]" * 3000]
    raw += [TINY.read_text().replace('"tiny_v1"', '"tiny_v1", "name": "tiny_v2"')]
    raw += [TINY.read_text().replace("Vanderbilt", "\\ud800")]
    raw += sealed_cases([*three, change("replace", "/format_version", 4)])
    five = [*three, change("replace", "/format_version", 5)]
    five += [change("add", "/model/label_distribution", label_distributions()[1])]
    raw += sealed_cases(five)
    return [{"patch": patch} for patch in patches] + [{"raw": broken} for broken in raw]


def sealed_cases(patch: list[dict[str, Any]]) -> list[str]:
    """A manifest with a valid seal, and variants with one small change."""
    values = patched(json.loads(TINY.read_text()), patch)
    whole = json_with_seal(values).decode()
    seal = whole[-SEAL_BYTES:]
    ordered = {**values, "sha256": sha256(json.dumps(values).encode())}
    return [
        whole,
        whole + "\n",
        whole[:-1],
        "\n" + whole,
        re.sub('"format_version": [45]', '"format_version": 3', whole),
        whole.replace('"format_version": 4', '"format_version": 5'),
        re.sub('"format_version": [45]', '"format_version": 6', whole),
        whole.replace('"name": "tiny_v1"', '"name": "tiny_v2"'),
        whole.replace('"name":', '"name" :'),
        whole.replace(seal, "\n}\n"),
        whole.replace(seal, seal.upper()),
        whole.replace(seal, seal.replace("sha256", "sha255")),
        whole.replace(seal, seal + seal),
        json.dumps(ordered),
        json_with_seal({**values, "files": {**values["files"], "manifest.sig": EXTRA}}).decode(),
        json_with_seal({**values, "files": {**values["files"], "extra.bin": EXTRA}}).decode(),
    ]


def label_distributions() -> list[Any]:
    """Distributions of two labels in one channel: unknown, known, and with one fault each."""
    shape, content = gaussian_values(15), gaussian_values(8)

    def known(route: dict[str, Any]) -> dict[str, Any]:
        return {"scans": 3, "routes": [{"route": 0, "shape": shape, "content": content} | route]}

    return [
        None,
        known({}),
        {},
        known({}) | {"scans": 0},
        known({"shape": content}),
        known({"content": shape}),
        known({"content": content | {"limit": 0}}),
        known({"content": content | {"deviation": [0.0] * 8}}),
        known({"content": content | {"deviation": [1.0] * 7}}),
        known({"content": content | {"whitening": content["whitening"][1:]}}),
        known({"content": content | {"whitening": [[1.0] * 8] * 8}}),
        known({"more": 1}),
    ]


def gaussian_values(size: int) -> dict[str, Any]:
    rows = [[0.0] * row + [1.0] for row in range(size)]
    return {"mean": [0.5] * size, "deviation": [1.0] * size, "whitening": rows, "limit": 1.5}


EXTRA = {"sha256": "0" * 64, "bytes": 3}


def change(op: str, path: str, value: Any = None) -> dict[str, Any]:
    return {"op": op, "path": path} | ({} if op == "remove" else {"value": value})


def manifest_vector(case: dict[str, Any]) -> dict[str, Any]:
    data = case.get("raw")
    if data is None:
        data = json.dumps(patched(json.loads(TINY.read_text()), case["patch"]))
    try:
        manifest_from_json(data.encode())
    except PackageError:
        return case | {"accepted": False}
    return case | {"accepted": True}


def patched(values: Any, patch: list[dict[str, Any]]) -> Any:
    """`values` after the operations add, replace and remove of JSON Patch."""
    for step in deepcopy(patch):
        *folders, last = step["path"].replace("~1", "\0").split("/")[1:]
        parent = values
        for name in folders:
            parent = parent[int(name) if isinstance(parent, list) else name.replace("\0", "/")]
        last = last.replace("\0", "/")
        if isinstance(parent, list):
            if step["op"] == "add":
                parent.insert(len(parent) if last == "-" else int(last), step["value"])
            elif step["op"] == "replace":
                parent[int(last)] = step["value"]
            else:
                del parent[int(last)]
        elif step["op"] == "remove":
            del parent[last]
        else:
            parent[last] = step["value"]
    return values


def engine_values() -> dict[str, Any]:
    """The manifest's entry of an engine for the small package."""
    shapes = [[1, 1, 16, 16, 16], [1, 1, 32, 32, 32], [1, 1, 64, 64, 64]]
    flat = [[16, 16], [32, 32], [64, 64]]
    matrices = {f"{way}_{axis}": flat for way in ("in", "out") for axis in "ijk"}
    return {
        "backend": "tensorrt",
        "precision": "fp32",
        "route": 0,
        "file": "engines/one.engine",
        "graph_sha256": graph_sha256(manifest_from_json(TINY.read_bytes())),
        "library": "10.13.3",
        "platform": "linux-x86_64",
        "gpu": "Some GPU",
        "compute_capabilities": ["8.9"],
        "options": {
            "workspace_mib": None,
            "optimization_level": 3,
            "hardware_compatibility": "none",
            "version_compatible": False,
            "tf32": False,
            "static_shapes": False,
        },
        "profile": {"image": shapes, **matrices},
    }


def graph_sha256(manifest: Manifest) -> str:
    return manifest.graph_sha256(manifest.graphs[0])


def seen_values() -> dict[str, Any]:
    ranges = {name: [-0.5, 1.5] for name in NAMES}
    return {
        "scans": 8,
        "min_view_mm": [20.0, 20.0, 20.0],
        "max_view_mm": [60.0, 60.0, 60.0],
        "patterns": [[0.25] * 64],
        "routes": [{"route": 0, "ranges": [ranges]}],
    }


def calibration_values() -> dict[str, Any]:
    return {
        "route": 0,
        "method": "minmax",
        "scans": 4,
        "scans_sha256": "1" * 64,
        "dice_budget": 0.002,
        "convolutions": 10,
        "int8_convolutions": [],
        "reason": None,
        "table": "calibration/route0.json",
        "measured_scans": 5,
        "variants": [{"arithmetic": "fp32", "dice_lost": -0.001, "agreement": 0.99, "speed": 1.5}],
    }


def compatibility_cases() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Differences of the engine and of the machine from a compatible pair."""
    options: dict[str, Any] = engine_values()["options"]
    ampere = {"options": {**options, "hardware_compatibility": "ampere_plus"}}
    same = {"options": {**options, "hardware_compatibility": "same_compute_capability"}}
    return [
        ({}, {}),
        ({"graph_sha256": "2" * 64}, {}),
        ({"platform": "linux-aarch64"}, {}),
        ({}, {"libraries": {}}),
        ({"library": "10.13.2"}, {}),
        ({}, {"gpu": None}),
        ({"gpu": "Another GPU"}, {}),
        ({"compute_capabilities": ["8.0", "9.0"]}, {}),
        ({"gpu": "Another GPU", **ampere}, {}),
        ({"gpu": "Another GPU", "compute_capabilities": ["8.0"], **ampere}, {}),
        ({"gpu": "Another GPU", **same}, {}),
        ({"gpu": "Another GPU", "compute_capabilities": ["8.0"], **same}, {}),
        ({**ampere, "compute_capabilities": ["8.0"]}, {"compute_capability": "7.5"}),
    ]


def compatibility_vector(engine: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    manifest = manifest_from_json(TINY.read_bytes())
    entry: EngineEntry = msgspec.convert(engine_values() | engine, EngineEntry)
    capability = machine.get("compute_capability", "8.9")
    here = Machine(
        "linux-x86_64",
        Gpu("Some GPU", capability, 1 << 34, False, "CUDA 12.6"),
        "no GPU",
        {"tensorrt": "10.13.3"},
    )
    here = replace(here, **{k: v for k, v in machine.items() if k != "compute_capability"})
    fits = incompatibility(entry, manifest, here) is None
    return {"engine": engine_values() | engine, "machine": machine, "fits": fits}


def stored(voxels: NDArray[Any]) -> dict[str, Any]:
    values = numbers(voxels) if voxels.dtype.kind == "f" else voxels.ravel().tolist()
    return {"dtype": voxels.dtype.name, "shape": voxels.shape, "voxels": values}


def numbers(values: NDArray[Any]) -> list[float | None]:
    """The shortest decimals of `values` in their own type."""
    flat = np.ascontiguousarray(values).ravel()
    return [number(float(str(value))) for value in flat]


def number(value: float) -> float | None:
    """JSON has neither NaN nor infinity: null represents both."""
    return value if np.isfinite(value) else None


if __name__ == "__main__":
    main()
