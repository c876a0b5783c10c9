"""What a user would run instead of rare-trt, on the same scans, from file to file, warm.

    python benchmarks/peers.py [--threads 1,2] [--shapes N] [--turns N] [--json FILE] [--anyway]

Every peer reads a scan with its own means, normalises, resamples, runs its network, takes the
class with the largest logit and writes labels on the scan's own grid. All peers take turns on every
scan, each once the threads of the one before have come to rest and its file is on the disk; each
number of threads is a process of its own, bound to as many CPUs. A ratio is the median
over all turns of the peer's time over that of rare-trt in the same turn. Peers:

- `rare-trt`: the package as `rare-trt infer` runs it; `rare-trt, float32`: its float32 graphs.
- `torch eager`, `torch.compile`: our network and routes from models/hippocampus, float32, with the
  runtime's own matrices.
- `onnxruntime`: the package's float32 graphs.
- `authors' way`: every scan is stretched to the full shape at 1 mm and takes route 0, in the size
  of their hippocampus configuration (f 8) and of their public default (f 32), both of depth 5. The
  full shape is the scan's extent at 1 mm, rounded up to the 32 voxels that this depth needs;
  `32x64x32` is that of their hippocampus configuration, which squeezes most scans.
- `monai`: its transforms and sliding window at 1 mm, with a DynUNet of the same levels and
  channels.
- `nnunetv2`: its predictor and file reader with the network it plans for the Decathlon's
  hippocampus, one fold and no mirrored copies (its default is eight times the work).

Networks without weights of ours are random: that changes no timing.
benchmarks/requirements-peers.txt pins what the figures were taken with; what is not installed is
named as absent.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any, Final

import nibabel as nib
import numpy as np
from quiet import require_quiet
from tqdm import tqdm

REPOSITORY: Final = Path(__file__).parents[1]
OURS: Final = "rare-trt"
EAGER: Final = "torch eager"
UNTIMED_TURNS: Final = 2
SETTLED_S: Final = 0.05
NEEDED_AGREEMENT: Final = 0.97

# A window that holds a typical crop of the hippocampus.
WINDOW: Final = (48, 64, 48)

Peer = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Bench:
    """A scan, the route rare-trt takes for it, and milliseconds by peer, turn by turn.

    Of `foreground` voxels that torch labels, rare-trt gives `agreeing` the same label.
    """

    scan: str
    route: int
    times: dict[str, list[float]]
    agreeing: int
    foreground: int


# Peers


def ours(precision: str | None) -> Peer:
    from rare_trt import Segmenter

    segmenter = Segmenter.load("hippocampus", "openvino", precision=precision)
    return lambda scan, out: segmenter.segment(scan).save(out)


@dataclass(frozen=True)
class Prepared:
    """A scan read with nibabel, as a route's graph takes it: its image and the six matrices."""

    image: Any
    region: Any
    route: int
    arrays: tuple[Any, ...]
    parts: tuple[int, int, int]


def prepared(scan: Path, package: Any) -> Prepared:
    """What every road of ours does before the graph, on voxels that nibabel has read."""
    from rare_trt.package.reading import route_from_entry
    from rare_trt.plan.resampling import plan_resampling, subvoxel_counts
    from rare_trt.plan.routing import choose_route
    from rare_trt.scan.field_of_view import select_region
    from rare_trt.scan.geometry import Grid, Volume
    from rare_trt.scan.intensity import normalise

    image = nib.load(scan)
    model = package.manifest.model
    volume = Volume(np.asanyarray(image.dataobj), Grid(image.shape, image.affine))
    region = select_region(volume, model.field_of_view_mm, None)
    routes = [route_from_entry(entry) for entry in package.manifest.routes]
    route = choose_route(region.grid.spacing_mm, routes, model.spacing_limits_mm).route
    parts = subvoxel_counts(region.grid, model.base_spacing_mm)
    steps = plan_resampling(region.grid, routes[route], region.grid.subdivide(parts))
    voxels = normalise(region.voxels, model.intensity)[None]
    arrays = (voxels, *steps.in_matrices, *steps.out_matrices)
    return Prepared(image, region, route, arrays, parts)


def saved(found: Prepared, answer: Any, classes: int, out: Path) -> None:
    """The answer at base spacing, as labels on the scan's own grid."""
    from rare_trt.plan.resampling import majority_vote

    labels = found.region.place(majority_vote(answer, found.parts, classes))
    nib.save(nib.Nifti1Image(labels, found.image.affine), out)


def torch_routes(compiled: bool) -> Peer:
    import torch

    from rare_trt.package.reading import open_package
    from rare_trt.training.checkpoint import load_checkpoint
    from rare_trt.training.inputs import RouteInputs

    package = open_package("hippocampus")
    network = load_checkpoint(REPOSITORY / "models" / "hippocampus").network
    classes = len(package.manifest.model.labels)

    def answer(route: int, *tensors: torch.Tensor) -> torch.Tensor:
        return RouteInputs(*tensors).predict(network, route)[0].argmax(0).to(torch.uint8)

    if compiled:
        torch._dynamo.config.cache_size_limit = 256
        answer = torch.compile(answer, dynamic=False)

    @torch.inference_mode()
    def run(scan: Path, out: Path) -> None:
        found = prepared(scan, package)
        tensors = [torch.from_numpy(array) for array in found.arrays]
        saved(found, answer(found.route, *tensors).numpy(), classes, out)

    return run


def onnxruntime_graphs() -> Peer:
    import onnxruntime

    from rare_trt.package.reading import graph_on_disk, open_package
    from rare_trt.sessions.session import INPUT_NAMES

    package = open_package("hippocampus")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    sessions = {}
    for entry in package.manifest.routes:
        graph = package.graph(entry.index, "fp32")
        files = (package.read(graph.file), package.read(graph.weights), Path(graph.weights).name)
        with graph_on_disk(*files) as path:
            sessions[entry.index] = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
    classes = len(package.manifest.model.labels)

    def run(scan: Path, out: Path) -> None:
        found = prepared(scan, package)
        inputs = dict(zip(INPUT_NAMES, found.arrays, strict=True))
        answer = sessions[found.route].run(["labels"], inputs)[0][0]
        saved(found, answer, classes, out)

    return run


def authors_way(filters: int, gate_blocks: int, shape: tuple[int, int, int] | None) -> Peer:
    import torch
    from torch.nn.functional import interpolate

    from rare_trt.training.network import NetworkConfig, RareUNet

    network = RareUNet(NetworkConfig(depth=5, filters=filters, gate_blocks=gate_blocks)).eval()

    @torch.inference_mode()
    def run(scan: Path, out: Path) -> None:
        image = nib.load(scan)
        canonical = nib.as_closest_canonical(image)
        voxels = canonical.get_fdata(dtype=np.float32)
        low, high = np.percentile(voxels, (0.5, 99.5)).tolist()
        voxels = np.clip((voxels - low) / (high - low), 0.0, 1.0)
        extent = np.multiply(voxels.shape, canonical.header.get_zooms())
        full = shape or tuple(math.ceil(size / 32 - 1e-4) * 32 for size in extent)
        whole = torch.from_numpy(voxels)[None, None]
        logits = network(interpolate(whole, size=full, mode="trilinear"))
        labels = interpolate(logits, size=voxels.shape, mode="trilinear")[0].argmax(0)
        answer = nib.Nifti1Image(labels.numpy().astype(np.uint8), canonical.affine)
        back = nib.orientations.ornt_transform(
            nib.io_orientation(canonical.affine), nib.io_orientation(image.affine)
        )
        nib.save(answer.as_reoriented(back), out)

    return run


def monai_window() -> Peer:
    import torch
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import DynUNet
    from monai.transforms import (
        AsDiscreted,
        Compose,
        EnsureChannelFirstd,
        Invertd,
        LoadImaged,
        NormalizeIntensityd,
        Orientationd,
        SaveImage,
        Spacingd,
    )

    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=3,
        kernel_size=[3] * 5,
        strides=[1, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 4,
        filters=[16, 32, 64, 128, 256],
    ).eval()
    before = Compose(
        [
            LoadImaged("image", reader="NibabelReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.0, 1.0, 1.0)),
            NormalizeIntensityd("image"),
        ]
    )
    after = Compose(
        [
            Invertd("pred", transform=before, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
        ]
    )

    @torch.inference_mode()
    def run(scan: Path, out: Path) -> None:
        data = before({"image": scan})
        data["pred"] = sliding_window_inference(data["image"][None], WINDOW, 1, network)[0]
        save = SaveImage(
            output_dtype=np.uint8, print_log=False, writer="NibabelWriter", resample=False
        )
        save(after(data)["pred"], filename=str(out).removesuffix(".nii.gz"))

    return run


def nnunet_predictor() -> Peer:
    import torch
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(NNUNET_PLANS)
    configuration = plans.get_configuration("3d_fullres")
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        3,
        deep_supervision=False,
    ).eval()
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "file_ending": ".nii.gz",
    }
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        network, plans, configuration, [network.state_dict()], dataset, "nnUNetTrainer", None
    )
    files = NibabelIOWithReorient()

    def run(scan: Path, out: Path) -> None:
        voxels, properties = files.read_images((str(scan),))
        labels = predictor.predict_single_npy_array(voxels, properties)
        files.write_seg(labels, str(out), properties)

    return run


# What nnU-Net plans for the Decathlon's hippocampus: 3d_fullres.
_ARCHITECTURES: Final = "dynamic_network_architectures.architectures.unet"
_RESAMPLING: Final = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
NNUNET_PLANS: Final[dict[str, Any]] = {
    "dataset_name": "Dataset004_Hippocampus",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
    "original_median_shape_after_transp": [36, 50, 35],
    "image_reader_writer": "NibabelIOWithReorient",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": {}},
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 9,
            "patch_size": [40, 56, 40],
            "median_image_size_in_voxels": [36.0, 50.0, 35.0],
            "spacing": [1.0, 1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": _RESAMPLING,
            "resampling_fn_seg_kwargs": {**_RESAMPLING, "is_seg": True, "order": 1},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {**_RESAMPLING, "order": 1},
            "architecture": {
                "network_class_name": f"{_ARCHITECTURES}.PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 4,
                    "features_per_stage": [32, 64, 128, 256],
                    "conv_op": "torch.nn.modules.conv.Conv3d",
                    "kernel_sizes": [[3, 3, 3]] * 4,
                    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
                    "n_conv_per_stage": [2, 2, 2, 2],
                    "n_conv_per_stage_decoder": [2, 2, 2],
                    "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
            "batch_dice": False,
        }
    },
}

PEERS: Final[dict[str, Callable[[], Peer]]] = {
    OURS: lambda: ours(None),
    "rare-trt, float32": lambda: ours("fp32"),
    EAGER: lambda: torch_routes(compiled=False),
    "torch.compile": lambda: torch_routes(compiled=True),
    "onnxruntime": onnxruntime_graphs,
    "authors' way, f 8": lambda: authors_way(8, 4, None),
    "authors' way, f 8, 32x64x32": lambda: authors_way(8, 4, (32, 64, 32)),
    "authors' way, f 32": lambda: authors_way(32, 2, None),
    "authors' way, f 32, 32x64x32": lambda: authors_way(32, 2, (32, 64, 32)),
    "monai": monai_window,
    "nnunetv2": nnunet_predictor,
}
DISTRIBUTIONS: Final = ("openvino", "torch", "onnxruntime", "monai", "nnunetv2", "numpy", "nibabel")


# Measuring


def loaded(wanted: list[str]) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    peers, absent = {}, {}
    for name in wanted:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                peers[name] = PEERS[name]()
        except ImportError as error:
            absent[name] = f"absent: {error}"
    return peers, absent


def measured(wanted: list[str], shapes: int, turns: int) -> dict[str, Any]:
    """All peers in this process, on `shapes` scans per route."""
    from rare_trt.bench.scans import package_scans
    from rare_trt.package.reading import open_package

    peers, absent = loaded(wanted)
    package = open_package("hippocampus")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = package_scans(package, folder / "scans")
        kept = [
            scan
            for entry in package.manifest.routes
            for scan in [s for s in scans if s.name.startswith(f"route{entry.index}_")][:shapes]
        ]
        for scan in tqdm(kept, "scans", file=sys.stderr):
            results.append(one_scan(peers, absent, scan, int(scan.name[5]), turns, folder))
    return {
        "threads": len(os.sched_getaffinity(0)),
        "absent": absent,
        "scans": [vars(result) for result in results],
    }


def one_scan(
    peers: dict[str, Peer],
    absent: dict[str, str],
    scan: Path,
    route: int,
    turns: int,
    folder: Path,
) -> Bench:
    """Every peer in turn; one that fails is named as absent, with what it said, and left out."""
    times: dict[str, list[float]] = {}
    last: dict[str, Path] = {}
    for turn in range(UNTIMED_TURNS + turns):
        order = list(peers)
        # Shuffled, lest one always finds the caches as the largest network left them.
        random.Random(turn).shuffle(order)
        for name in order:
            # A new file every time: what replacing one costs is the file system's affair.
            out = folder / f"{list(PEERS).index(name)}_{scan.name}_{turn}.nii.gz"
            settle()
            start = perf_counter()
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    peers[name](scan, out)
            except Exception as error:
                del peers[name]
                absent[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
                times.pop(name, None)
                continue
            took = (perf_counter() - start) * 1e3
            if turn >= UNTIMED_TURNS:
                times.setdefault(name, []).append(took)
            if name in last:
                last[name].unlink()
            last[name] = out
    if EAGER not in last:
        return Bench(scan.name, route, times, 0, 0)
    found, truth = (np.asanyarray(nib.load(last[name]).dataobj) for name in (OURS, EAGER))
    same = int(((found == truth) & (truth > 0)).sum())
    return Bench(scan.name, route, times, same, int((truth > 0).sum()))


def settle() -> None:
    """Leaves nothing of the last peer for the next one to pay for: files on their way to the disk,
    and OpenMP's threads, which go on spinning for some milliseconds after their work."""
    os.sync()
    sleep(SETTLED_S)


# Reporting


def tables(results: list[dict[str, Any]], spacings: dict[int, float]) -> list[str]:
    """Ratios first, then milliseconds."""
    lines = []
    for result in results:
        routes = sorted({scan["route"] for scan in result["scans"]})
        heads = " | ".join(f"{spacings[route]:g} mm" for route in routes)
        names = [n for n in PEERS if any(n in scan["times"] for scan in result["scans"])]
        lines += [f"Times rare-trt, {result['threads']} thread(s):", ""]
        lines += [f"| peer | {heads} |", "|---" * (len(routes) + 1) + "|"]
        for name in names:
            lines.append(row(name, [ratios(result, name, route) for route in routes], ".2f"))
        lines += ["", f"Milliseconds from file to file, {result['threads']} thread(s):", ""]
        lines += [f"| peer | {heads} |", "|---" * (len(routes) + 1) + "|"]
        for name in names:
            lines.append(row(name, [times(result, name, route) for route in routes], ".1f"))
        lines.append("")
        lines += [f"{name}: {reason}" for name, reason in result["absent"].items()]
        shares = agreements(result)
        if shares:
            worded = ", ".join(f"{share:.4f} on route {r}" for r, share in shares.items())
            lines.append(f"of the voxels that torch eager labels, rare-trt labels alike: {worded}")
        lines.append("")
    return lines


def row(name: str, values: list[list[float]], form: str) -> str:
    cells = [f"{median(found):{form}}" if found else "" for found in values]
    return f"| {name} | {' | '.join(cells)} |"


def ratios(result: dict[str, Any], name: str, route: int) -> list[float]:
    """The peer's time over rare-trt's in the same turn."""
    return [
        theirs / own
        for scan in result["scans"]
        if scan["route"] == route
        for theirs, own in zip(scan["times"].get(name, ()), scan["times"][OURS], strict=False)
    ]


def times(result: dict[str, Any], name: str, route: int) -> list[float]:
    scans = [scan for scan in result["scans"] if scan["route"] == route]
    return [took for scan in scans for took in scan["times"].get(name, ())]


def agreements(result: dict[str, Any]) -> dict[int, float]:
    """By route, the share of torch's foreground voxels that rare-trt gives the same label."""
    found = {}
    for route in sorted({scan["route"] for scan in result["scans"]}):
        scans = [scan for scan in result["scans"] if scan["route"] == route]
        foreground = sum(scan["foreground"] for scan in scans)
        if foreground:
            found[route] = sum(scan["agreeing"] for scan in scans) / foreground
    return found


def main() -> int:
    """A process per number of threads; exits 1 where labels are not those of torch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="processes are bound to so many CPUs")
    parser.add_argument("--shapes", type=int, default=3, help="scans per route")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--anyway", action="store_true", help="on a loaded machine too")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = list(dict.fromkeys([OURS, *options.peers]))
    if options.inside:
        json.dump(measured(wanted, options.shapes, options.turns), sys.stdout)
        return 0
    require_quiet(options.anyway)
    results = []
    for count in map(int, options.threads.split(",")):
        cpus = sorted(os.sched_getaffinity(0))[:count]
        asked = [sys.executable, __file__, "--inside", "--peers", *wanted]
        asked += ["--shapes", str(options.shapes), "--turns", str(options.turns)]
        done = subprocess.run(
            ["taskset", "-c", ",".join(map(str, cpus)), *asked],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
    load = require_quiet(options.anyway)
    from rare_trt.bench.benchmark import machine
    from rare_trt.package.reading import open_package

    spacings = {e.index: e.spacing_mm for e in open_package("hippocampus").manifest.routes}
    where = {name: value for name, value in machine().items() if name != "threads"}
    where |= versions()
    print("; ".join(f"{name} {value}" for name, value in where.items()))
    print(load, end="\n\n")
    print("\n".join(tables(results, spacings)))
    if options.json:
        found = {"where": where, "load": load, "results": results}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    shares = [share for result in results for share in agreements(result).values()]
    return int(any(share < NEEDED_AGREEMENT for share in shares))


def versions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(ImportError):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
