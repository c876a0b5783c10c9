"""The fp16 graph of a route: the float32 graph with explicit casts.

The image, its resampling and the norms stay float32: raw geometry needs float32's digits, and a
sum of squares over a volume leaves fp16's range. All else is fp16, up to the arg-max. The
conversion is onnxconverter-common's; which nodes stay float32, and the check, are written here.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnxconverter_common.float16 import convert_float_to_float16

from rare_trt.errors import RareTrtError
from rare_trt.export.lint import infer_tensor_types, lint

NORM: Final = "InstanceNormalization"
LARGEST: Final = float(np.finfo(np.float16).max)

# The type of all inputs and outputs of a node.
TYPES: Final = {
    "Conv": TensorProto.FLOAT16,
    "ConvTranspose": TensorProto.FLOAT16,
    NORM: TensorProto.FLOAT,
}


def fp16_from_float32(model: ModelProto) -> ModelProto:
    """The fp16 graph of the float32 `model`, which is one route with its weights inside.

    Raises RareTrtError where a weight is beyond fp16's range, or where the result fails the lint
    or find_typing_faults.
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
    faults = lint(typed) + find_typing_faults(typed)
    if faults:
        raise RareTrtError(f"the fp16 graph is not typed as it should be: {'; '.join(faults)}")
    return typed


def find_typing_faults(model: ModelProto) -> list[str]:
    """Tensors of `model` of another type than this module describes; empty where there are none.

    Convolutions must take and give fp16; norms and the image's resampling float32.
    """
    types = infer_tensor_types(model)
    checked = [(node, TYPES[node.op_type]) for node in model.graph.node if node.op_type in TYPES]
    checked += [(n, TensorProto.FLOAT) for n in _input_nodes(model) if n.op_type == "MatMul"]
    return [
        f"{node.name}: {name} is {TensorProto.DataType.Name(types[name])}"
        for node, kind in checked
        for name in (*node.input, *node.output)
        if types[name] != kind
    ]


def _input_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes that resample the image to the working grid, before the first convolution."""
    before = list(takewhile(lambda node: node.op_type != "Conv", model.graph.node))
    reached = {"image", "in_i", "in_j", "in_k"}
    found = []
    for node in before:
        if node.op_type not in ("Shape", "Cast") and reached & set(node.input):
            found.append(node)
            reached |= set(node.output)
    return found
