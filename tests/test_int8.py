"""INT8: quantised graphs, the search, and calibrated packages."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from conftest import SHARED
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from rare_trt import Scan, Segmenter, Volume, read_scan
from rare_trt.backends import Arithmetic
from rare_trt.calibration.fp16 import fp16_from_float32
from rare_trt.calibration.int8 import (
    METHODS,
    Method,
    find_quantisable,
    find_quantisation_faults,
    int8_from_float32,
    measure_ranges,
)
from rare_trt.calibration.package_calibration import calibrate_package
from rare_trt.calibration.progress import Steps
from rare_trt.calibration.route_calibration import _confirm_int8
from rare_trt.calibration.search import Budget, Outcome, search
from rare_trt.calibration.trial import Score, Trials
from rare_trt.cli import main
from rare_trt.engines.builder import EngineBuilder, TypedGraph
from rare_trt.engines.engines_from_package import build_engines
from rare_trt.errors import BackendError, OutputError
from rare_trt.evaluation.cases import CaseFiles, load_cases
from rare_trt.evaluation.prepared_cases import prepare_case
from rare_trt.evaluation.simulation import acquire, whole_voxel_grid
from rare_trt.export.graph_files import files_from_models, load_graph
from rare_trt.export.lint import lint
from rare_trt.export.onnx_from_route import onnx_from_route
from rare_trt.package.manifest import (
    BuilderOptions,
    CalibrationEntry,
    Manifest,
    Variant,
)
from rare_trt.package.reading import Package, open_package
from rare_trt.package.writing import write_package
from rare_trt.plan.resampling import ResamplingPlan
from rare_trt.scan.intensity import IntensityRule
from rare_trt.sessions.candidates import SessionCandidates
from rare_trt.sessions.machine import Machine, this_platform
from rare_trt.sessions.openvino import OpenVinoFacts, OpenVinoRun
from rare_trt.sessions.run import PreparedScan, run_tiles
from rare_trt.sessions.session import INPUT_NAMES, LOGITS, Inputs
from rare_trt.storage.cache import Cache
from rare_trt.training.network import NetworkConfig, RareUNet

pytestmark = pytest.mark.usefixtures("quick_trials")

SHAPE = (16, 24, 16)


@pytest.fixture(scope="module")
def model() -> ModelProto:
    """Route 0 of a small network, float32."""
    torch.manual_seed(0)
    return onnx_from_route(RareUNet(NetworkConfig(depth=2, filters=4, routes=2)).eval(), 0)


def scan(seed: int, shape: tuple[int, int, int] = SHAPE) -> Inputs:
    """A working grid of noise, in and out by identities."""
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(1, 1, *shape)), *(np.eye(n) for n in (*shape, *shape))]
    return {n: a.astype(np.float32) for n, a in zip(INPUT_NAMES, arrays, strict=True)}


@pytest.fixture(scope="module")
def ranges(model: ModelProto) -> dict[str, float]:
    return dict(measure_ranges(model, [scan(0), scan(1, (24, 16, 20))], "minmax"))


def convolution_inputs(model: ModelProto) -> dict[str, str]:
    return {node.name: node.input[0] for node in model.graph.node if node.op_type == "Conv"}


def observed(model: ModelProto, tensor: str, inputs: Inputs) -> NDArray[np.float32]:
    """What a tensor inside the graph holds."""
    from onnxruntime import InferenceSession

    more = ModelProto()
    more.CopyFrom(model)
    more.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    session = InferenceSession(more.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run([tensor], inputs)[0]
    return found


def test_the_first_convolution_and_the_head_stay_floating_point(model: ModelProto) -> None:
    every = list(convolution_inputs(model))
    # Two per encoder level and bottleneck, one per decoder level, less the first; no head.
    assert find_quantisable(model) == every[1:-1]
    assert len(find_quantisable(model)) == 2 * 2 + 2 + 2 - 1


def test_ranges_are_the_largest_values_over_scans_of_different_shapes(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    tensors = convolution_inputs(model)
    assert set(ranges) == set(tensors.values())
    for tensor in [tensors[name] for name in find_quantisable(model)[:3]]:
        scans = [scan(0), scan(1, (24, 16, 20))]
        largest = max(float(np.abs(observed(model, tensor, one)).max()) for one in scans)
        assert ranges[tensor] == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_leave_out_the_rarest_values_at_most(
    model: ModelProto, ranges: dict[str, float], method: Method
) -> None:
    found = measure_ranges(model, [scan(0), scan(1, (24, 16, 20))], method)
    for tensor, top in found.items():
        assert 0.0 < top <= ranges[tensor] * 1.001, tensor


def test_chosen_convolutions_are_int8_and_no_others(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    names = find_quantisable(model)[1:4]
    typed = int8_from_float32(model, ranges, names)
    onnx.checker.check_model(typed, full_check=True)
    assert lint(typed) == []
    assert find_quantisation_faults(typed, names) == []
    assert find_quantisation_faults(typed, names[1:]) == [f"{names[0]}: takes a quantised tensor"]
    more = find_quantisable(model)[:4]
    assert find_quantisation_faults(typed, more) == [
        f"{more[0]}: data or weights do not come from INT8"
    ]
    assert find_quantisation_faults(typed, ["x"])[-1] == "x: is not in the graph"
    made_by = {output: node for node in typed.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in typed.graph.initializer}
    tensors = convolution_inputs(model)
    for node in typed.graph.node:
        if node.name not in names:
            continue
        data, weights = (made_by[name] for name in node.input[:2])
        scale = numpy_helper.to_array(constants[data.input[1]])
        assert scale.shape == ()
        # The graph's scales are fp16.
        assert float(scale) == pytest.approx(ranges[tensors[node.name]] / 127, rel=2e-3)
        kernel = numpy_helper.to_array(constants[weights.input[0]])
        assert kernel.dtype == np.int8
        assert numpy_helper.to_array(constants[weights.input[1]]).shape == kernel.shape[:1]


def test_int8_answers_nearly_as_float32(model: ModelProto, ranges: dict[str, float]) -> None:
    typed = int8_from_float32(model, ranges, find_quantisable(model))
    expected, found = (observed(one, LOGITS, scan(2)).ravel() for one in (model, typed))
    assert np.corrcoef(expected, found)[0, 1] > 0.98
    assert (expected != found).any()


def test_without_convolutions_the_graph_is_the_fp16_graph(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    kinds = {node.op_type for node in int8_from_float32(model, ranges, []).graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}


def test_a_zero_point_that_is_not_zero_is_found(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    typed = int8_from_float32(model, ranges, find_quantisable(model)[:1])
    (node,) = (n for n in typed.graph.node if n.op_type == "QuantizeLinear")
    (zero,) = (t for t in typed.graph.initializer if t.name == node.input[2])
    zero.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), zero.name))
    assert any("zero point is not 0" in fault for fault in lint(typed))


def test_files_give_back_the_model_they_were_made_of(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    for one in (model, int8_from_float32(model, ranges, find_quantisable(model))):
        copied = ModelProto()
        copied.CopyFrom(one)
        files = files_from_models([copied], "weights.bin")
        again = load_graph(files.graphs[0], files.weights)
        for tensor, kept in zip(one.graph.initializer, again.graph.initializer, strict=True):
            assert (numpy_helper.to_array(tensor) == numpy_helper.to_array(kept)).all()
        onnx.checker.check_model(again, full_check=True)


def test_int8_graphs_share_the_weights_of_the_fp16_graphs(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    fp16, int8 = (
        fp16_from_float32(model),
        int8_from_float32(model, ranges, find_quantisable(model)[3:5]),
    )
    expected = [numpy_helper.to_array(tensor).copy() for tensor in int8.graph.initializer]
    beside = files_from_models([fp16], "weights.bin")
    again = ModelProto()
    again.CopyFrom(int8)
    alone = len(files_from_models([again], "weights.bin").weights)
    files = files_from_models([int8], "weights.bin", beside)
    assert files.weights.startswith(beside.weights)
    assert 0 < len(files.weights) - len(beside.weights) < 0.6 * alone
    found = load_graph(files.graphs[0], files.weights).graph.initializer
    for tensor, kept in zip(found, expected, strict=True):
        assert (numpy_helper.to_array(tensor) == kept).all()


def test_tensorrts_parser_sees_int8_data_and_weights_where_they_are_meant_to_be(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    names = find_quantisable(model)[1:]
    files = files_from_models([int8_from_float32(model, ranges, names)], "weights.bin")
    builder = EngineBuilder(
        "tensorrt-rtx",
        BuilderOptions(),
        Machine(this_platform(), None, "no GPU", {"tensorrt-rtx": trt.__version__}),
    )
    network = builder.parse(TypedGraph(0, files.graphs[0], "weights.bin", files.weights))
    assert quantised_convolutions(trt, network) == names


def int8_routes(package: Package) -> dict[int, tuple[str, ...]]:
    """Which convolutions of which routes are meant to be INT8."""
    entries = package.manifest.calibration
    return {entry.route: entry.int8_convolutions for entry in entries if entry.reason is None}


def test_tensorrts_parser_takes_the_shipped_int8_graphs() -> None:
    """Each is sound and has the convolutions in INT8 that the manifest names."""
    trt = pytest.importorskip("tensorrt_rtx")
    package = open_package("hippocampus")
    machine = Machine(this_platform(), None, "no GPU", {"tensorrt-rtx": trt.__version__})
    builder = EngineBuilder("tensorrt-rtx", BuilderOptions(), machine)
    meant = int8_routes(package)
    assert 0 in meant
    for route, names in meant.items():
        graph = package.graph(route, "int8")
        data, weights = package.read(graph.file), package.read(graph.weights)
        model = load_graph(data, weights)
        onnx.checker.check_model(model, full_check=True)
        assert lint(model) == []
        assert find_quantisation_faults(model, names) == []
        network = builder.parse(TypedGraph(route, data, Path(graph.weights).name, weights))
        assert quantised_convolutions(trt, network) == list(names)


@pytest.mark.slow
def test_tensorrt_builds_the_shipped_int8_graphs(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    package = open_package("hippocampus")
    machine = Machine(this_platform(), None, "no GPU", {"tensorrt-rtx": trt.__version__})
    meant = int8_routes(package)
    engines, built = build_engines(
        package, "tensorrt-rtx", "int8", BuilderOptions(), machine, out=tmp_path / "int8.rare"
    )
    assert {one.entry.route for one in built} == {e.index for e in package.manifest.routes}
    for one in built:
        assert one.entry.precision == ("int8" if one.entry.route in meant else "fp16")
        assert len(engines.read(one.entry.file)) > 1_000_000


# The library is found at run time, and has no types.
def quantised_convolutions(trt, network) -> list[str]:  # type: ignore[no-untyped-def]
    """Convolutions whose data and weights come straight from an INT8 dequantisation."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    made_by = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
    }
    found = []
    for layer in layers:
        if layer.type != trt.LayerType.CONVOLUTION:
            continue
        sources = [
            made_by.get(layer.get_input(index).name)
            for index in range(layer.num_inputs)
            if layer.get_input(index) is not None
        ]
        if len(sources) > 1 and all(
            source is not None
            and source.type == trt.LayerType.DEQUANTIZE
            and source.get_input(0).dtype == trt.int8
            for source in sources[:2]
        ):
            found.append(layer.name)
    return found


def steps() -> Steps:
    """The steps of a search alone."""
    return Steps("searching", 0)


class Scripted:
    """Scores by a rule instead of by running anything: what each convolution costs and gains."""

    def __init__(
        self, cost: dict[str, float], gain: dict[str, float], moves: dict[str, float] | None = None
    ) -> None:
        self.cost, self.gain, self.moves = cost, gain, moves or {}
        self.asked: list[tuple[str, ...]] = []

    def score(self, model: ModelProto, *, bf16: bool = False) -> Score:
        made_by = {output: node for node in model.graph.node for output in node.output}
        names = [
            node.name
            for node in model.graph.node
            if node.op_type == "Conv"
            and node.input[0] in made_by
            and made_by[node.input[0]].op_type == "DequantizeLinear"
        ]
        self.asked.append(tuple(names))
        lost = sum(self.cost[name] for name in names)
        moved = sum(self.moves.get(name, 0.0) for name in names)
        return Score(lost, 1.0 - lost, moved, 1.0 + sum(self.gain[name] for name in names))


def test_a_score_counts_the_labels_that_move(model: ModelProto) -> None:
    """Of the same scans far from zero: those that the graph labels otherwise, and no others."""
    rng = np.random.default_rng(3)
    same = tuple(np.eye(n, dtype=np.float32) for n in SHAPE)
    steps = ResamplingPlan(SHAPE, (same[0], same[1], same[2]), (same[0], same[1], same[2]))
    images = rng.normal(size=(2, 1, *SHAPE)).astype(np.float32)
    samples = [PreparedScan(image, steps, SHAPE) for image in images]
    far = [samples[0], PreparedScan(images[1][:, ::-1].copy(), steps, SHAPE)]
    run = OpenVinoRun(model.SerializeToString())
    before, after = (run_tiles(run, one) for one in (samples[1], far[1]))
    share = np.count_nonzero(before != after) / (2 * before.size)
    assert share > 0.05
    assert Trials(model, samples, far, 3).score(model).moved == pytest.approx(share)
    assert Trials(model, samples, samples, 3).score(model).moved == 0.0


def test_training_scans_far_from_zero_lose_what_float32_cannot_hold(examples: Path) -> None:
    """By their contrast: whatever the unit of their intensities, they lose the same."""
    paths = examples / "hippocampus_1mm.nii.gz", examples / "truth/1mm.nii.gz"
    (case,) = load_cases([CaseFiles("one", *paths)], 1, 3, IntensityRule())
    manifest = open_package("hippocampus").manifest
    lost = []
    for unit in (1e-6, 1.0, 1e6):
        scaled = replace(case, voxels=(case.voxels * np.sqrt(2) * unit).astype(np.float32))
        near, far = (
            prepare_case(manifest, manifest.routes[1], scaled, far=far).image
            for far in (0.0, 100.0)
        )
        lost.append(float(np.abs(far - near).max()))
        assert 1e-6 < lost[-1] < 1e-3
    assert max(lost) < 3 * min(lost)


def test_the_search_keeps_all_where_all_hold_the_budget(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    names = find_quantisable(model)
    trials = Scripted(dict.fromkeys(names, 1e-4), dict.fromkeys(names, 0.1))
    outcome = search(model, {"minmax": ranges}, trials, Budget(0.003), steps())
    assert outcome.names == tuple(names)
    assert outcome.reason is None
    rows = list(csv.DictReader(io.StringIO(outcome.table().decode())))
    assert [row["back in fp16"] for row in rows] == ["", *names]


def test_every_graph_of_a_search_is_a_step(model: ModelProto, ranges: dict[str, float]) -> None:
    names = find_quantisable(model)
    cost = dict.fromkeys(names, 1e-4) | {names[4]: 0.004}
    rules = Scripted(cost, dict.fromkeys(names, 0.1))
    with Steps("searching", len(names)) as one_bar:
        outcome = search(model, {"minmax": ranges}, rules, Budget(0.003), one_bar)
        assert len({step.round for step in outcome.steps}) > 2
        assert one_bar._bar.n == one_bar._bar.total == len(outcome.steps) - 1


def test_the_search_takes_the_ranges_that_move_the_fewest_labels(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    class Preferring:
        """The narrower its ranges, the better a graph."""

        def score(self, model: ModelProto, *, bf16: bool = False) -> Score:
            constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
            quantise = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
            return Score(0.0, 1.0 - float(constants[quantise[0].input[1]]) / 100.0, 0.0, 2.0)

    narrower = {name: top / 2 for name, top in ranges.items()}
    both: dict[Method, dict[str, float]] = {"minmax": ranges, "entropy": narrower}
    outcome = search(model, both, Preferring(), Budget(0.003, agreement=0.0), steps())
    assert outcome.method == "entropy"
    rows = list(csv.DictReader(io.StringIO(outcome.table().decode())))
    assert [row["ranges"] for row in rows[:3]] == ["minmax", "entropy", "entropy"]


def test_the_search_gives_back_what_costs_most_for_least_time(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    names = find_quantisable(model)
    cost = dict.fromkeys(names, 1e-4) | {names[2]: 0.004, names[4]: 0.003}
    gain = dict.fromkeys(names, 0.1) | {names[2]: 0.3}
    outcome = search(model, {"minmax": ranges}, Scripted(cost, gain), Budget(0.0055), steps())
    # The fifth regains .003 for .1, the third .004 for .3: the fifth goes, and that is enough.
    assert outcome.names == tuple(name for name in names if name != names[4])
    tighter = search(model, {"minmax": ranges}, Scripted(cost, gain), Budget(0.0015), steps())
    assert tighter.names == tuple(n for n in names if n not in (names[2], names[4]))
    assert tighter.score is not None and tighter.score.dice_lost <= 0.0015


def test_the_search_gives_back_what_moves_most_labels_for_least_time(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    names = find_quantisable(model)
    cost, gain = dict.fromkeys(names, 1e-4), dict.fromkeys(names, 0.1) | {names[1]: 0.3}
    moves = {names[1]: 6e-5, names[2]: 5e-5, names[4]: 1e-5}
    outcome = search(model, {"minmax": ranges}, Scripted(cost, gain, moves), Budget(0.003), steps())
    assert outcome.names == tuple(name for name in names if name != names[2])
    steady = Budget(0.003, moved=0.0)
    outcome = search(model, {"minmax": ranges}, Scripted(cost, gain, moves), steady, steps())
    assert outcome.names == tuple(name for name in names if name not in moves)
    rows = list(csv.DictReader(io.StringIO(outcome.table().decode())))
    assert float(rows[0]["labels moved"]) == pytest.approx(1.2e-4)


def test_the_search_gives_back_what_is_slower_in_int8(
    model: ModelProto, ranges: dict[str, float]
) -> None:
    names = find_quantisable(model)
    gain = dict.fromkeys(names, 0.1) | {names[0]: -0.2, names[3]: -0.01}
    trials = Scripted(dict.fromkeys(names, 0.0), gain)
    outcome = search(model, {"minmax": ranges}, trials, Budget(0.003), steps())
    # The fourth costs less than a timing can tell.
    assert outcome.names == tuple(names[1:])


def test_the_search_says_why_there_is_no_int8(model: ModelProto, ranges: dict[str, float]) -> None:
    names = find_quantisable(model)
    dear = Scripted(dict.fromkeys(names, 0.1), dict.fromkeys(names, 0.1))
    outcome = search(model, {"minmax": ranges}, dear, Budget(0.003), steps())
    assert (outcome.names, outcome.score) == ((), None)
    assert outcome.reason == "no convolution can be INT8 within the budget"
    slow = Scripted(dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.001))
    outcome = search(model, {"minmax": ranges}, slow, Budget(0.003), steps())
    assert outcome.names == ()
    assert outcome.reason is not None and "times the speed of float32" in outcome.reason


@pytest.fixture(scope="module")
def few_cases(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    folder = tmp_path_factory.mktemp("few")
    for part, source in (("images", "hippocampus_1mm.nii.gz"), ("labels", "truth/1mm.nii.gz")):
        (folder / part).mkdir()
        image = nib.load(examples / source)
        for number in range(1, 4):
            nib.save(image.slicer[number:], folder / part / f"case_{number:03d}.nii.gz")
    return folder


def test_a_package_without_fp16_graphs_is_not_calibrated(
    tiny_package_folder: Path, few_cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.rare"
    command = ["calibrate", str(tiny_package_folder), "--data", str(few_cases), "-o", str(out)]
    assert main(command) == 1
    assert "has 0 files of fp16 weights; expected one" in capsys.readouterr().err
    assert not out.exists()


class ScriptedTrials:
    """In place of the trials of a calibration: every convolution costs and gains the same."""

    def __init__(self, reference: ModelProto, *samples: object) -> None:
        names = [node.name for node in reference.graph.node]
        self._rule = Scripted(dict.fromkeys(names, 1e-3), dict.fromkeys(names, 0.1))

    def score(self, model: ModelProto, *, bf16: bool = False) -> Score:
        return self._rule.score(model, bf16=bf16)


@pytest.fixture(scope="module", params=["scripted", pytest.param("run", marks=pytest.mark.slow)])
def trials(request: pytest.FixtureRequest) -> Iterator[None]:
    """How calibrations score their graphs: by a rule, or as they are, in some twenty seconds."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "scripted":
            patch.setattr("rare_trt.calibration.route_calibration.Trials", ScriptedTrials)
        yield


@pytest.fixture(scope="module")
def calibrated(
    trials: None, half: Package, few_cases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Package:
    """The small package with a generous budget: its network is hardly trained."""
    out = tmp_path_factory.mktemp("calibrated") / "tiny.rare"
    command = ["calibrate", str(half.folder), "--data", str(few_cases)]
    assert main([*command, "--dice-budget", "0.5", "-o", str(out)]) == 0
    return open_package(out)


def test_a_calibrated_package_says_how_it_came_about(calibrated: Package) -> None:
    manifest = calibrated.manifest
    assert [entry.route for entry in manifest.calibration] == [0, 1]
    for entry in manifest.calibration:
        assert entry.method in METHODS
        # Ranges and search use other scans than the check.
        assert (entry.scans, entry.measured_scans) == (2, 1)
        rows = list(csv.DictReader(io.StringIO(calibrated.read(entry.table).decode())))
        assert {row["ranges"] for row in rows if row["round"] == "0"} == set(METHODS)
        assert len(rows) > entry.convolutions
        assert all(variant.speed > 0 for variant in entry.variants)
        has_graph = any(
            (graph.route, graph.precision) == (entry.route, "int8") for graph in manifest.graphs
        )
        assert has_graph is bool(entry.int8_convolutions) is (entry.reason is None)
        speeds = [variant.speed for variant in entry.variants]
        assert speeds == sorted(speeds, reverse=True)
    for name in manifest.files:
        calibrated.read(name)


def test_calibrating_again_replaces_what_was_there(
    calibrated: Package, few_cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again.rare"
    command = ["calibrate", str(calibrated.folder), "--data", str(few_cases), "-o", str(out)]
    # Nothing may be lost: no route can hold that, and the INT8 graphs go.
    assert main([*command, "--dice-budget", "0"]) == 0
    again = open_package(out).manifest
    known = {entry.scans_sha256 for entry in calibrated.manifest.calibration}
    assert {entry.scans_sha256 for entry in again.calibration} == known
    for entry in again.calibration:
        assert all(variant.dice_lost <= 0.0 for variant in entry.variants)
    named = {graph.file for graph in again.graphs} | {graph.weights for graph in again.graphs}
    assert {name for name in again.files if name.startswith("graphs/")} == named


def test_ranges_are_taken_once_for_a_graph_and_a_set_of_scans(
    calibrated: Package, few_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("the ranges are known")

    monkeypatch.setattr("rare_trt.calibration.route_calibration.measure_ranges", never)
    command = ["calibrate", str(calibrated.folder), "--data", str(few_cases)]
    assert main([*command, "-o", str(tmp_path / "x.rare")]) == 0
    monkeypatch.setenv("RARE_TRT_CACHE", str(tmp_path / "empty"))
    with pytest.raises(AssertionError, match="ranges are known"):
        main([*command, "-o", str(tmp_path / "y.rare")])
    assert not (tmp_path / "y.rare").exists()


@pytest.mark.parametrize(
    ("speeds", "reason"),
    [
        ({"int8": 2.0, "fp16": 1.0}, None),
        ({"int8": 1.05, "fp16": 1.0}, "INT8 runs at 1.05 times the speed of fp16"),
        ({"fp16": 1.0}, "INT8 was within the budget on the scans of the search, and not on"),
    ],
)
def test_int8_stays_where_the_check_confirms_it(
    model: ModelProto, speeds: dict[Arithmetic, float], reason: str | None
) -> None:
    found = Outcome("minmax", ("x",), Score(0.0, 1.0, 0.0, 2.0), None, ())
    variants = [Variant(name, 0.0, 1.0, speed) for name, speed in speeds.items()]
    left, graphs = _confirm_int8(found, {"fp16": model, "int8": model}, variants)
    if reason is None:
        assert (left, set(graphs)) == (found, {"fp16", "int8"})
    else:
        assert left.reason is not None and left.reason.startswith(reason)
        assert (left.names, left.score, set(graphs)) == ((), None, {"fp16"})


def test_what_another_program_did_to_the_package_meanwhile_is_not_undone(
    half: Package, few_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {name: half.read(name) for name in half.manifest.files}
    folder = tmp_path / "own.rare"
    own = write_package(folder, half.manifest, contents, overwrite=False)

    def meanwhile(package: Package, *arguments: object) -> tuple[Manifest, dict[str, bytes]]:
        changed = replace(package.manifest, created_with="another program")
        write_package(folder, changed, contents, overwrite=True)
        return package.manifest, contents

    monkeypatch.setattr("rare_trt.calibration.package_calibration.compute_calibration", meanwhile)
    with pytest.raises(OutputError, match="changed by another program meanwhile"):
        calibrate_package(own, few_cases, 0.1, folder, overwrite=True)
    assert open_package(folder).manifest.created_with == "another program"


def test_a_graph_that_openvino_cannot_compile_is_one_sentence() -> None:
    with pytest.raises(BackendError, match="OpenVINO cannot compile a graph"):
        OpenVinoRun(b"no graph")


@pytest.mark.parametrize("budget", ["-0.1", "nan", "2"])
def test_a_budget_that_is_none_is_refused(
    tiny_package_folder: Path,
    few_cases: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    budget: str,
) -> None:
    command = ["calibrate", str(tiny_package_folder), "--data", str(few_cases)]
    assert main([*command, f"--dice-budget={budget}", "-o", str(tmp_path / "x.rare")]) == 1
    assert "Dice budget" in capsys.readouterr().err


def arithmetics(package: Package, capabilities: Sequence[str]) -> list[str]:
    facts = OpenVinoFacts("0", "a CPU", tuple(capabilities))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rare_trt.sessions.openvino.openvino_facts", lambda: facts)
        choice = SessionCandidates(package, "openvino", Cache())
        return [candidate.arithmetic for candidate in choice.select(0)]


def test_the_fastest_that_the_cpu_can_compute_answers() -> None:
    """By the package's own measurement; the plain graph is always there, and last."""
    package = open_package("hippocampus")
    order: tuple[Arithmetic, ...] = ("int8", "int8+bf16", "fp16+bf16", "fp16")
    entry = CalibrationEntry(
        *(0, "minmax", 1, "0" * 64, 0.003, 1, ("x",), None, "manifest.json", 1),
        tuple(Variant(name, 0.0, 1.0, 2.0) for name in order),
    )
    graph = replace(package.graph(0, "fp16"), precision="int8")
    manifest = replace(
        package.manifest, calibration=(entry,), graphs=(*package.manifest.graphs, graph)
    )
    package = replace(package, manifest=manifest)
    assert arithmetics(package, ["FP32", "INT8", "BF16"]) == list(order)
    assert arithmetics(package, ["FP32", "INT8"]) == ["int8", "fp16"]
    assert arithmetics(package, ["FP32", "BF16"]) == ["fp16+bf16", "fp16"]
    assert arithmetics(package, ["FP32"]) == ["fp16"]
    # Where fp16 was not found to hold the budget it does not answer.
    held = replace(entry, variants=tuple(v for v in entry.variants if v.arithmetic == "int8"))
    package = replace(package, manifest=replace(manifest, calibration=(held,)))
    assert arithmetics(package, ["FP32", "INT8"]) == ["int8", "fp32"]
    assert arithmetics(package, ["FP32"]) == ["fp32"]


SCALES_AND_OFFSETS = [*((factor, 0.0) for factor in (1e-3, 1e5)), (1.0, 1e5), (1.0, -1e5)]


@pytest.fixture(scope="module", params=[2, pytest.param(8, marks=pytest.mark.slow)])
def full_scans(request: pytest.FixtureRequest, examples: Path) -> list[Volume]:
    """Some held-out scans at 1 mm where there are any, else the example."""
    held = open_package("hippocampus").manifest.model.training.validation_cases[::2]
    held = held[: request.param]
    paths = [SHARED / "hippocampus" / "images" / f"{name}.nii.gz" for name in held]
    if not all(path.is_file() for path in paths):
        paths = [examples / "hippocampus_1mm.nii.gz"]
    return [read_scan(path).volume for path in paths]


@pytest.mark.parametrize("spacing", [1.0, 2.0, 4.0, 8.0])
def test_no_precision_sees_scale_or_offset(full_scans: list[Volume], spacing: float) -> None:
    """But for 1 voxel in 10,000 of the 1 mm grid, because float32 rounds voxels that lie 1e5
    from zero. INT8 makes steps of it and bf16 smaller ones: docs/measurements/precisions.md has
    the figures on single scans and over all."""
    scans = []
    for full in full_scans:
        grid = whole_voxel_grid(full.grid, (spacing, spacing, spacing))
        voxels = acquire(full.voxels[None].astype(np.float32), full.grid, grid)[0]
        scans.append(Scan(Volume(voxels, grid)))
    seen = set()
    for only in each_variant_alone(open_package("hippocampus")):
        with Segmenter(only, "openvino") as segmenter:
            plain = [segmenter.segment(scan, spacing_out_mm=1.0) for scan in scans]
            precision = plain[0].precision
            seen.add(precision)
            for factor, offset in SCALES_AND_OFFSETS:
                differ, sizes = [], []
                for scan, unchanged in zip(scans, plain, strict=True):
                    voxels = scan.volume.voxels * np.float32(factor) + np.float32(offset)
                    changed = Scan(Volume(voxels, scan.volume.grid))
                    labels = segmenter.segment(changed, spacing_out_mm=1.0).labels
                    differ.append(np.count_nonzero(labels != unchanged.labels))
                    sizes.append(labels.size)
                what = (precision, factor, offset, differ, sizes)
                single = 1e-4 if precision in ("fp32", "fp16") else 3e-4
                assert all(d <= single * n for d, n in zip(differ, sizes, strict=True)), what
                if len(scans) > 2:
                    assert sum(differ) <= 1e-4 * sum(sizes), what
    assert "fp16" in seen


def each_variant_alone(package: Package) -> Iterator[Package]:
    """The package with no other graph than float32, with fp16 in float32, and with each way that
    the package was measured to run this CPU."""
    manifest = package.manifest
    graphs = tuple(graph for graph in manifest.graphs if graph.precision == "fp32")
    yield replace(package, manifest=replace(manifest, graphs=graphs, calibration=()))
    yield replace(package, manifest=replace(manifest, calibration=()))
    ways = {variant.arithmetic for entry in manifest.calibration for variant in entry.variants}
    for way in sorted(ways):
        entries = tuple(
            replace(entry, variants=tuple(v for v in entry.variants if v.arithmetic == way))
            for entry in manifest.calibration
        )
        yield replace(package, manifest=replace(manifest, calibration=entries))
