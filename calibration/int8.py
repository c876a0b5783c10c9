"""The INT8 graph of a route: chosen convolutions between quantise and dequantise, the rest fp16.

ONNX Runtime's quantiser writes the graph: symmetric, zero point 0, one scale per tensor for
activations and one per output channel for weights, as Wu et al. recommend, "Integer Quantization
for Deep Learning Inference: Principles and Empirical Evaluation", arXiv:2004.09602 (2020).

Only 3³ convolutions can be quantised, and of those not the first, whose input is the image. Norms,
transposed convolutions, heads and the resampling stay as in the fp16 graph. Outputs of convolutions
are not quantised, because a norm follows. A decoder's convolution is quantised after its
concatenation, so that skip and upsampled features share one scale.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from math import prod
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    TensorData,
    TensorsData,
    create_calibrator,
)

from rare_trt.calibration.fp16 import fp16_from_float32
from rare_trt.errors import RareTrtError
from rare_trt.export.lint import infer_tensor_types, map_producers
from rare_trt.sessions.session import Inputs

Method: TypeAlias = Literal["minmax", "percentile", "entropy"]
METHODS: Final[Mapping[Method, CalibrationMethod]] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}

# Largest absolute value of each input of a convolution, by the name of the tensor.
Ranges: TypeAlias = Mapping[str, float]

OPTIONS: Final = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "OpTypesToExcludeOutputQuantization": ["Conv"],
    "QuantizeBias": False,
}


def find_quantisable(model: ModelProto) -> list[str]:
    """Names of the nodes of `model` that can be INT8, in order: 3³ convolutions but the first."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and prod(weights[node.input[1]][2:]) > 1
    ]
    return found[1:]


def measure_ranges(model: ModelProto, scans: Sequence[Inputs], method: Method) -> Ranges:
    """The range of each convolution's input in the float32 `model`, over `scans` of any shapes.

    `minmax` takes the largest absolute value, `percentile` the 99.99th percentile of the absolute
    values, `entropy` the range with the least Kullback-Leibler divergence between the histograms
    before and after quantisation (Migacz, "8-bit Inference with TensorRT", GTC 2017). Wu et al.
    (arXiv:2004.09602) compare the three.
    """
    options: dict[str, object] = {"symmetric": True}
    if method == "percentile":
        options["percentile"] = 99.99
    with tempfile.TemporaryDirectory(prefix="rare-trt-") as folder, redirect_stdout(StringIO()):
        path = Path(folder) / "graph.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            op_types_to_calibrate=["Conv"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=METHODS[method],
            extra_options=options,
        )
        for scan in scans:
            # One by one: all scans of a call must have one shape.
            calibrator.collect_data(_OneScan(scan))
        found = calibrator.compute_data()
    taken = {node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    ranges = {}
    for name in sorted(taken):
        low, high = (float(np.asarray(value).item()) for value in found[name].range_value)
        ranges[name] = max(abs(low), abs(high))
    return ranges


def int8_from_float32(model: ModelProto, ranges: Ranges, names: Sequence[str]) -> ModelProto:
    """The graph of the float32 `model` (one route, weights inside) with the convolutions `names`
    in INT8 and all else as in the fp16 graph.

    Raises RareTrtError where the result fails the checks of the fp16 graph or
    find_quantisation_faults.
    """
    if not names:
        return fp16_from_float32(model)
    copied = ModelProto()
    copied.CopyFrom(model)
    data = {
        name: TensorData(lowest=np.float32(-top), highest=np.float32(top))
        for name, top in ranges.items()
    }
    quantiser = QDQQuantizer(
        copied,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=list(names),
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv"],
        extra_options=OPTIONS,
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    typed = fp16_from_float32(quantiser.model.model)
    faults = find_quantisation_faults(typed, names)
    if faults:
        raise RareTrtError(f"the INT8 graph is not typed as it should be: {'; '.join(faults)}")
    return typed


def find_quantisation_faults(model: ModelProto, names: Sequence[str]) -> list[str]:
    """Nodes of `model` that break the rule "quantised at the convolutions `names` and nowhere
    else"; empty where there are none."""
    types, producers = infer_tensor_types(model), map_producers(model)
    faults = []
    for node in model.graph.node:
        quantised = [_is_dequantisation(producers.get(name), types) for name in node.input]
        if node.name in names:
            if quantised[:2] != [True, True]:
                faults.append(f"{node.name}: data or weights do not come from INT8")
        elif any(quantised):
            faults.append(f"{node.name}: takes a quantised tensor")
    found = {node.name for node in model.graph.node}
    return faults + [f"{name}: is not in the graph" for name in names if name not in found]


def _is_dequantisation(node: NodeProto | None, types: Mapping[str, int]) -> bool:
    """Whether `node` converts INT8 values back to floating point."""
    if node is None or node.op_type != "DequantizeLinear":
        return False
    return types[node.input[0]] == TensorProto.INT8


# onnxruntime has no types: to mypy its classes are Any.
class _OneScan(CalibrationDataReader):  # type: ignore[misc]
    """One scan for a calibrator."""

    def __init__(self, scan: Inputs) -> None:
        self._left = [scan]

    def get_next(self) -> Inputs | None:
        """The scan on the first call, None afterwards."""
        return self._left.pop() if self._left else None
