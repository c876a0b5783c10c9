"""The fp16 graphs: types in ONNX and in TensorRT's parser, and accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rare_trt.calibration.fp16 import find_typing_faults, fp16_from_float32
from rare_trt.commands.verify import MAX_CASES, open_scans
from rare_trt.engines.builder import EngineBuilder
from rare_trt.engines.engines_from_package import typed_graph_from_package
from rare_trt.errors import RareTrtError
from rare_trt.evaluation.verification import compare_with_float32
from rare_trt.export.lint import lint
from rare_trt.package.manifest import BuilderOptions
from rare_trt.package.reading import Package, open_package
from rare_trt.sessions.candidates import SessionCandidates
from rare_trt.sessions.machine import Machine, this_platform
from rare_trt.storage.cache import Cache

ROUTES = range(4)


@pytest.fixture(scope="module")
def package() -> Package:
    return open_package("hippocampus")


def loaded(package: Package, route: int, precision: str) -> onnx.ModelProto:
    return onnx.load(str(package.folder / f"graphs/{precision}/route{route}.onnx"))


@pytest.mark.parametrize("route", ROUTES)
def test_convolutions_are_fp16_and_norms_and_the_images_resampling_float32(
    package: Package, route: int
) -> None:
    model = loaded(package, route, "fp16")
    onnx.checker.check_model(model, full_check=True)
    assert lint(model) == []
    assert find_typing_faults(model) == []
    # The same check finds the float32 graph wrongly typed: at every convolution, at no norm.
    faults = find_typing_faults(loaded(package, route, "fp32"))
    nodes = loaded(package, route, "fp32").graph.node
    convolutions = {node.name for node in nodes if node.op_type in ("Conv", "ConvTranspose")}
    assert {fault.partition(":")[0] for fault in faults} == convolutions


@pytest.mark.parametrize("route", ROUTES)
def test_tensorrts_parser_sees_fp16_data_and_weights_at_every_convolution(
    package: Package, route: int
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    machine = Machine(this_platform(), None, "no GPU", {"tensorrt-rtx": trt.__version__})
    builder = EngineBuilder("tensorrt-rtx", BuilderOptions(), machine)
    network = builder.parse(typed_graph_from_package(package, package.graph(route, "fp16")))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    convolutions = [
        layer
        for layer in layers
        if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    ]
    nodes = loaded(package, route, "fp16").graph.node
    assert len(convolutions) == sum(n.op_type in ("Conv", "ConvTranspose") for n in nodes) > 5
    for layer in convolutions:
        assert layer.get_input(0).dtype == trt.float16, layer.name
        if layer.num_inputs > 1:
            assert layer.get_input(1).dtype == trt.float16, layer.name
        else:
            kind = trt.IConvolutionLayer
            if layer.type == trt.LayerType.DECONVOLUTION:
                kind = trt.IDeconvolutionLayer
            layer.__class__ = kind
            assert np.asarray(layer.kernel).dtype == np.float16, layer.name
    assert network.get_input(0).dtype == trt.float32


@pytest.mark.parametrize("count", [2, pytest.param(MAX_CASES, marks=pytest.mark.slow)])
def test_every_precision_agrees_with_float32_on_real_scans(
    shared_data: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16: mean Dice of the labels at least .999, against manual labels at most .001 lower. What
    calibration offers this CPU: against manual labels within its budget, at 1 mm at least .975."""
    package = open_package("hippocampus")
    budgets = {entry.route: entry.dice_budget for entry in package.manifest.calibration}
    assert budgets == {0: 0.003, 1: 0.003, 2: 0.006, 3: 0.006}
    monkeypatch.setattr("rare_trt.commands.verify.MAX_CASES", count)
    cases = open_scans(package, shared_data / "hippocampus")
    choice = SessionCandidates(package, "openvino", Cache())
    for route in ROUTES:
        samples = cases(route)
        assert len(samples) == count
        found = {f.name: f for f in compare_with_float32(package, route, samples, choice)}
        assert {"openvino fp32", "openvino fp16"} <= set(found)
        for one in found.values():
            assert one.broken == [], one.name
            assert one.loss is not None and one.loss <= budgets[route], one.name
            assert one.dice is not None and one.dice >= (0.975 if route == 0 else 0.95), one.name
        fp16 = found["openvino fp16"]
        assert fp16.dice is not None and fp16.dice >= 0.999
        assert fp16.loss is not None and fp16.loss <= 0.001
        # Another graph indeed: its logits differ, and by rounding alone.
        assert fp16.logit_error is not None and 0 < fp16.logit_error < 0.1
        assert fp16.non_finite == 0


def test_a_weight_beyond_fp16_is_refused(package: Package) -> None:
    model = loaded(package, 3, "fp32")
    (tensor,) = (t for t in model.graph.initializer if t.name == "network.heads.3.weight")
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[0] = 1e5
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    with pytest.raises(RareTrtError, match=r"network.heads.3.weight: holds 100000; fp16 ends at"):
        fp16_from_float32(model)
