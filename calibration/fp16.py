"""The fp16 graph of a route: the float32 graph with explicit casts.

The image, its resampling and the norms stay float32: raw geometry wants float32's digits, and a
sum of squares over a volume leaves fp16's range. Everything else is fp16, up to the arg-max. The
conversion is onnxconverter-common's; what stays float32 and the proof of it are ours.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxconverter_common.float16 import convert_float_to_float16

from rare_trt.errors import RareTrtError
from rare_trt.export.lint import lint, tensor_types

CONVOLUTIONS: Final = ("Conv", "ConvTranspose")
NORM: Final = "InstanceNormalization"
LARGEST: Final = float(np.finfo(np.float16).max)


def fp16_model(model: ModelProto) -> ModelProto:
    """`model`, one route in float32 with its weights inside, typed as fp16.

    Raises RareTrtError where a weight is beyond fp16, or where the result is not typed as it
    should be.
    """
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            weight = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            if not weight <= LARGEST:
                raise RareTrtError(
                    f"{tensor.name}: holds {weight:g}; fp16 ends at {LARGEST:g}: train with "
                    "weight decay, or ship float32 alone"
                )
    typed: ModelProto = convert_float_to_float16(
        model,
        min_positive_val=0.0,
        max_finite_val=LARGEST,
        keep_io_types=True,
        op_block_list=[NORM],
        node_block_list=[node.name for node in _input_nodes(model)],
    )
    typed.graph.ClearField("value_info")
    onnx.checker.check_model(typed, full_check=True)
    faults = lint(typed) + typing_faults(typed)
    if faults:
        raise RareTrtError(f"the fp16 graph is not typed as it should be: {'; '.join(faults)}")
    return typed


def typing_faults(model: ModelProto) -> list[str]:
    """Where `model` is not typed as this module says; empty where it is."""
    types = tensor_types(model)
    wanted: list[tuple[NodeProto, list[str], int]] = []
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS:
            wanted.append((node, [*node.input, *node.output], TensorProto.FLOAT16))
        elif node.op_type == NORM:
            wanted.append((node, [*node.input, *node.output], TensorProto.FLOAT))
    wanted += [
        (node, [*node.input, *node.output], TensorProto.FLOAT)
        for node in _input_nodes(model)
        if node.op_type == "MatMul"
    ]
    return [
        f"{node.name}: {name} is {TensorProto.DataType.Name(types[name])}"
        for node, names, kind in wanted
        for name in names
        if types[name] != kind
    ]


def _input_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes that bring the image to the working grid: all before the first convolution."""
    before = list(takewhile(lambda node: node.op_type != "Conv", model.graph.node))
    reached = {"image", "in_i", "in_j", "in_k"}
    found = []
    for node in before:
        if node.op_type not in ("Shape", "Cast") and reached & set(node.input):
            found.append(node)
            reached |= set(node.output)
    return found
