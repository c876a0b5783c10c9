"""The INT8 graph of a route: chosen convolutions between quantise and dequantise, the rest fp16.

ONNX Runtime's quantiser does the work: symmetric, zero point 0, one scale per tensor for
activations and one per output channel for weights. What it quantises is ours: the 3³ convolutions
but the first, whose input is the image itself. Norms, transposed convolutions, heads and the
resampling stay as in the fp16 graph, and nothing is quantised on its way out of a convolution: a
norm follows. A decoder's convolution is quantised after its concatenation, so that skip and
upsampled features share one scale.
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

from rare_trt.calibration.fp16 import fp16_model
from rare_trt.errors import RareTrtError
from rare_trt.export.lint import tensor_types
from rare_trt.sessions.session import Inputs

Method: TypeAlias = Literal["minmax", "percentile", "entropy"]
METHODS: Final[Mapping[Method, CalibrationMethod]] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}

# Largest absolute value of each tensor that a convolution takes.
Ranges: TypeAlias = Mapping[str, float]

OPTIONS: Final = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "OpTypesToExcludeOutputQuantization": ["Conv"],
    "QuantizeBias": False,
}


def convolutions(model: ModelProto) -> list[str]:
    """Names of the nodes of `model` that can be INT8, in order: 3³ convolutions but the first."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and prod(weights[node.input[1]][2:]) > 1
    ]
    return found[1:]


def activation_ranges(model: ModelProto, scans: Sequence[Inputs], method: Method) -> Ranges:
    """What each convolution of the float32 `model` takes, over `scans` of any shapes.

    `minmax` takes the largest absolute value, `percentile` that of all but 1 in 10,000 values,
    `entropy` the range whose histogram loses least information.
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
            # One by one: the histograms of one call must be of one shape.
            calibrator.collect_data(_One(scan))
        found = calibrator.compute_data()
    taken = {node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    ranges = {}
    for name in sorted(taken):
        low, high = (float(np.asarray(value).item()) for value in found[name].range_value)
        ranges[name] = max(abs(low), abs(high))
    return ranges


def int8_model(model: ModelProto, ranges: Ranges, names: Sequence[str]) -> ModelProto:
    """`model`, one route in float32 with its weights inside, with the convolutions `names` in INT8
    and everything else as in the fp16 graph.

    Raises RareTrtError where the result is not typed as it should be.
    """
    if not names:
        return fp16_model(model)
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
    typed = fp16_model(quantiser.model.model)
    faults = quantisation_faults(typed, names)
    if faults:
        raise RareTrtError(f"the INT8 graph is not typed as it should be: {'; '.join(faults)}")
    return typed


def quantisation_faults(model: ModelProto, names: Sequence[str]) -> list[str]:
    """Where `model` is not quantised at the convolutions `names` and there alone."""
    types = tensor_types(model)
    made_by = {output: node for node in model.graph.node for output in node.output}
    faults = []
    for node in model.graph.node:
        sources = [made_by.get(name) for name in node.input]
        quantised = [is_dequantised(source, types) for source in sources]
        if node.name in names:
            if quantised[:2] != [True, True]:
                faults.append(f"{node.name}: data or weights do not come from INT8")
        elif any(quantised):
            faults.append(f"{node.name}: takes what was quantised")
    found = {node.name for node in model.graph.node}
    return faults + [f"{name}: is not there" for name in names if name not in found]


def is_dequantised(node: NodeProto | None, types: Mapping[str, int]) -> bool:
    """Whether `node` brings INT8 values back to floating point."""
    if node is None or node.op_type != "DequantizeLinear":
        return False
    return types[node.input[0]] == TensorProto.INT8


# onnxruntime has no types: to mypy its classes are Any.
class _One(CalibrationDataReader):  # type: ignore[misc]
    """One scan for a calibrator."""

    def __init__(self, scan: Inputs) -> None:
        self._left = [scan]

    def get_next(self) -> Inputs | None:
        return self._left.pop() if self._left else None
