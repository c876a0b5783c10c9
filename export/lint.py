"""What TensorRT 10.3 (JetPack 6) can take, checked without it.

TensorRT-RTX accepting a graph is necessary, not sufficient: it is a later release. The limits
below are those of the ONNX parser's operator table of the 10.3 release.
"""

from __future__ import annotations

from typing import Final

from onnx import ModelProto, TensorProto, numpy_helper
from onnx.shape_inference import infer_shapes

# 18 cannot hold fp16 quantisation, and TensorRT 10.3's parser knows 19 whole.
OPSET: Final = 19

ALLOWED: Final = frozenset(
    (
        *("Add", "Cast", "Concat", "Constant", "Conv", "ConvTranspose", "DequantizeLinear"),
        *("Div", "Expand", "Gather", "Greater", "InstanceNormalization", "LeakyRelu", "MatMul"),
        *("MaxPool", "Mul", "QuantizeLinear", "Reshape", "Shape", "Slice", "Squeeze", "Sub"),
        *("Transpose", "Unsqueeze", "Where"),
    )
)

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16

QUANTISERS: Final = ("QuantizeLinear", "DequantizeLinear")

DTYPES: Final = frozenset(
    {
        FLOAT,
        FLOAT16,
        TensorProto.INT64,
        TensorProto.INT32,
        TensorProto.INT8,
        TensorProto.BOOL,
        TensorProto.UINT8,
    }
)


def lint(model: ModelProto) -> list[str]:
    """Every reason why TensorRT 10.3 would refuse or mishandle `model`; empty where none."""
    faults = []
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.pop("", None) != OPSET:
        faults.append(f"opset is not {OPSET}")
    faults += [f"operators of domain {domain}" for domain in opsets if domain != "ai.onnx"]
    if model.functions:
        faults.append("local functions")
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in ALLOWED:
            faults.append(f"{node.name}: operator {node.op_type}")
    types = tensor_types(model)
    for name, kind in types.items():
        if kind not in DTYPES:
            faults.append(f"{name}: type {TensorProto.DataType.Name(kind)}")
    edges = {value.name for value in (*model.graph.input, *model.graph.output)}
    for name in sorted(n for n, kind in types.items() if kind == TensorProto.UINT8):
        if name not in edges:
            faults.append(f"{name}: uint8 is for inputs and outputs only")
            continue
        node = made_by.get(name)
        if node is not None and (
            node.op_type != "Cast" or types.get(node.input[0]) not in (FLOAT, FLOAT16)
        ):
            faults.append(f"{name}: uint8 not made by a cast from float")
    return faults + _quantisation_faults(model, types)


def _quantisation_faults(model: ModelProto, types: dict[str, int]) -> list[str]:
    """TensorRT takes INT8 symmetric, with constant scales, and only between Q and DQ."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    faults = []
    for node in model.graph.node:
        if node.op_type not in QUANTISERS:
            kinds = [types.get(name) for name in (*node.input, *node.output) if name]
            if TensorProto.INT8 in kinds:
                faults.append(f"{node.name}: {node.op_type} takes or gives INT8")
            continue
        if any(name not in constants for name in node.input[1:]):
            faults.append(f"{node.name}: scale or zero point is no constant")
        elif len(node.input) > 2 and numpy_helper.to_array(constants[node.input[2]]).any():
            faults.append(f"{node.name}: zero point is not 0")
    return faults


def tensor_types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor of the graph."""
    graph = infer_shapes(model, data_prop=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types
