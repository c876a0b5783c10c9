"""The exported graphs: their contents, and equal labels from torch and OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rare_trt import Segmenter
from rare_trt.building.package_from_checkpoint import MAX_CHECK_CASES, check_against_network
from rare_trt.evaluation.cases import CaseFiles, load_cases
from rare_trt.export.agreement import Agreement
from rare_trt.export.lint import lint
from rare_trt.package.reading import Package, open_package, route_from_entry
from rare_trt.plan.resampling import plan_resampling, tiles
from rare_trt.sessions.openvino import OpenVinoSession
from rare_trt.sessions.run import graph_inputs
from rare_trt.sessions.session import INPUT_NAMES
from rare_trt.storage.cache import Cache
from rare_trt.training.checkpoint import Checkpoint, load_checkpoint

CHECKPOINT = Path(__file__).parents[1] / "models" / "hippocampus"
ROUTES = range(4)


@pytest.fixture(scope="module")
def package() -> Package:
    return open_package("hippocampus")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(CHECKPOINT)


def graph_path(package: Package, route: int) -> Path:
    return package.folder / package.graph(route, "fp32").file


def test_the_graphs_give_the_labels_of_torch_on_real_scans(
    package: Package, checkpoint: Checkpoint, shared_data: Path, tmp_path: Path
) -> None:
    """At most 1 voxel in 100,000 differs, each where two classes were nearly equal."""
    files = [
        CaseFiles(
            name,
            *(
                shared_data / "hippocampus" / part / f"{name}.nii.gz"
                for part in ("images", "labels")
            ),
        )
        for name in checkpoint.facts.validation[::4]
    ]
    assert len(files) <= MAX_CHECK_CASES
    cases = load_cases(files, 1, 3, checkpoint.recipe.intensity)
    results = check_against_network(package, checkpoint, cases, Cache(tmp_path))
    assert [result.route for result in results] == list(ROUTES)
    for result in results:
        assert result.voxels > 100_000
        assert result.within_bounds, str(result)


def test_an_agreement_is_out_of_bounds_where_a_sure_voxel_or_too_many_differ() -> None:
    assert Agreement(0, 1_000_000, 10, 9e-3).within_bounds
    assert not Agreement(0, 1_000_000, 11, 9e-3).within_bounds
    assert not Agreement(0, 1_000_000, 1, 2e-2).within_bounds


@pytest.mark.parametrize("route", ROUTES)
def test_every_graph_passes_the_checker_and_the_lint(package: Package, route: int) -> None:
    path = graph_path(package, route)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    assert lint(model) == []
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 19}
    shapes = {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "image": (1, 1, "i", "j", "k"),
        "in_i": ("I", "i"),
        "in_j": ("J", "j"),
        "in_k": ("K", "k"),
        "out_i": ("oi", "I"),
        "out_j": ("oj", "J"),
        "out_k": ("ok", "K"),
        "labels": (1, "oi", "oj", "ok"),
    }
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_graphs_name_no_file_of_the_machine_that_made_them(package: Package) -> None:
    for route in ROUTES:
        data = graph_path(package, route).read_bytes()
        assert b"site-packages" not in data
        assert b".py" not in data


def test_routes_share_their_weights(package: Package, checkpoint: Checkpoint) -> None:
    """The one file of weights holds each tensor once: it is as large as the network."""
    weights = package.manifest.files["graphs/fp32/weights.bin"].bytes
    network = 4 * sum(p.numel() for p in checkpoint.network.parameters())
    assert 0.97 * network < weights < 1.01 * network


def model_of(*nodes: onnx.NodeProto, source: int, target: int) -> onnx.ModelProto:
    """A model from x to y through `nodes`."""
    x = helper.make_tensor_value_info("x", source, [2])
    y = helper.make_tensor_value_info("y", target, [2])
    graph = helper.make_graph(list(nodes), "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
DOUBLE = TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (model_of(helper.make_node("Elu", ["x"], ["y"]), source=FLOAT, target=FLOAT), "Elu"),
        (
            model_of(
                helper.make_node("Cast", ["x"], ["d"], to=DOUBLE),
                helper.make_node("Cast", ["d"], ["y"], to=FLOAT),
                source=FLOAT,
                target=FLOAT,
            ),
            "d: type DOUBLE",
        ),
        (
            model_of(
                helper.make_node("Cast", ["x"], ["b"], to=TensorProto.INT32),
                helper.make_node("Cast", ["b"], ["y"], to=UINT8),
                source=FLOAT,
                target=UINT8,
            ),
            "y: uint8 not made by a cast from float",
        ),
        (
            model_of(
                helper.make_node("Cast", ["x"], ["u"], to=UINT8),
                helper.make_node("Cast", ["u"], ["y"], to=FLOAT),
                source=FLOAT,
                target=FLOAT,
            ),
            "u: uint8 is for inputs and outputs only",
        ),
    ],
)
def test_the_lint_finds_every_fault(model: onnx.ModelProto, words: str) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert any(words in fault for fault in lint(model)), lint(model)


def test_the_lint_wants_opset_19() -> None:
    model = model_of(helper.make_node("Cast", ["x"], ["y"], to=UINT8), source=FLOAT, target=UINT8)
    assert lint(model) == []
    model.opset_import[0].version = 20
    assert lint(model) == ["opset is not 19"]


def test_the_lint_refuses_other_domains_and_local_functions() -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=UINT8)
    model = model_of(cast, source=FLOAT, target=UINT8)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert lint(model) == ["operators of domain com.microsoft"]
    model = model_of(cast, source=FLOAT, target=UINT8)
    opset = [helper.make_opsetid("", 19)]
    copy = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("", "Copy", ["a"], ["b"], [copy], opset))
    assert "local functions" in lint(model)


def test_the_lint_refuses_int8_outside_quantisers_and_scales_that_vary() -> None:
    quantise = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantise")
    back = helper.make_node("DequantizeLinear", ["r", "scale", "zero"], ["y"], "back")
    between = helper.make_node("Identity", ["q"], ["r"], "between")
    model = model_of(quantise, between, back, source=FLOAT, target=FLOAT)
    constants = {"scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    assert "between: Identity takes or gives INT8" in lint(model)
    del model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info("scale", FLOAT, []))
    assert "quantise: scale or zero point is not constant" in lint(model)


def test_one_graph_labels_grids_other_than_the_images(package: Package, examples: Path) -> None:
    """The same scan labelled on its own grid and on a finer one: equal labels."""
    with Segmenter(package) as segmenter:
        own = segmenter.segment(examples / "hippocampus_1mm.nii.gz")
        fine = segmenter.segment(examples / "hippocampus_1mm.nii.gz", spacing_out_mm=0.5)
    i, j, k = fine.labels.shape
    assert (i, j, k) == tuple(2 * n for n in own.labels.shape)
    halves = fine.labels.reshape(i // 2, 2, j // 2, 2, k // 2, 2)
    inside = halves.min(axis=(1, 3, 5)) == halves.max(axis=(1, 3, 5))
    # A voxel whose eight parts agree is that label on the own grid too, but for edge cases.
    agree = own.labels[inside] == halves[:, 0, :, 0, :, 0][inside]
    assert agree.mean() > 0.999


def test_padding_to_buckets_changes_no_label(
    package: Package, examples: Path, tmp_path: Path
) -> None:
    """Zero columns and cropped rows: the padded run equals the exact one."""
    from rare_trt import read_scan
    from rare_trt.scan.intensity import normalise

    volume = read_scan(examples / "hippocampus_2mm.nii.gz").volume
    route = route_from_entry(package.manifest.routes[1])
    image = normalise(volume.voxels, package.manifest.model.intensity)
    steps = plan_resampling(volume.grid, route, volume.grid)
    (tile,) = tiles(steps, route.max_shape)
    session = OpenVinoSession(package, package.graph(1, "fp32"), Cache(tmp_path))
    padded = graph_inputs(image, tile)
    exact = dict(
        zip(INPUT_NAMES, (image[None], *tile.in_matrices, *tile.out_matrices), strict=True)
    )
    assert padded["image"].shape != exact["image"].shape
    i, j, k = steps.output_shape
    assert np.array_equal(session.run(padded)[:i, :j, :k], session.run(exact))
