"""What TensorRT 10.3 (JetPack 6) can take, checked without it.

TensorRT-RTX accepting a graph is necessary, not sufficient: it is a later release. The limits
below are those of the ONNX parser's operator table of the 10.3 release.
"""

from __future__ import annotations

from typing import Final

from onnx import ModelProto, TensorProto
from onnx.shape_inference import infer_shapes

# 18 cannot hold fp16 quantisation, and TensorRT 10.3's parser knows 19 whole.
OPSET: Final = 19

ALLOWED: Final = frozenset(
    (
        *("Add", "Cast", "Concat", "Constant", "Conv", "ConvTranspose", "Div", "Expand", "Gather"),
        *("Greater", "InstanceNormalization", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Reshape"),
        *("Shape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
    )
)

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16

DTYPES: Final = frozenset(
    {
        FLOAT,
        FLOAT16,
        TensorProto.INT64,
        TensorProto.INT32,
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
    return faults


def tensor_types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor of the graph."""
    graph = infer_shapes(model, data_prop=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types
