"""What TensorRT 10.3 (JetPack 6) can take, checked without it.

TensorRT-RTX accepting a graph is necessary, not sufficient: it is a later release. The limits
below are those of the ONNX parser's operator table of the 10.3 release.
"""

from __future__ import annotations

from typing import Final

from onnx import ModelProto, TensorProto

OPSET: Final = 19

ALLOWED: Final = frozenset(
    (
        *("Add", "Cast", "Concat", "Constant", "Conv", "ConvTranspose", "Div", "Expand", "Gather"),
        *("Greater", "InstanceNormalization", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Reshape"),
        *("Shape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
    )
)

DTYPES: Final = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
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
    for tensor in model.graph.initializer:
        if tensor.data_type not in DTYPES:
            faults.append(f"{tensor.name}: type {TensorProto.DataType.Name(tensor.data_type)}")
        if tensor.data_type == TensorProto.UINT8:
            faults.append(f"{tensor.name}: uint8 is for inputs and outputs only")
    for value in model.graph.output:
        node = made_by[value.name]
        is_uint8 = value.type.tensor_type.elem_type == TensorProto.UINT8
        if is_uint8 and node.op_type != "Cast":
            faults.append(f"{value.name}: uint8 not made by a cast")
    return faults
