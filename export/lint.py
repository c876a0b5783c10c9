"""Rules that TensorRT 10.3 (JetPack 6) sets for a graph, checked without TensorRT.

That TensorRT for RTX accepts a graph is necessary and not sufficient: it is a later release. The
limits below are those of the ONNX parser's operator table of release 10.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.shape_inference import infer_shapes

# Opset 18 has no fp16 quantisation; TensorRT 10.3's parser supports all of 19.
OPSET: Final = 19

ALLOWED: Final = frozenset(
    (
        *("Add", "Cast", "Concat", "Constant", "Conv", "ConvTranspose", "DequantizeLinear"),
        *("Div", "Expand", "Gather", "Greater", "InstanceNormalization", "LeakyRelu", "MatMul"),
        *("MaxPool", "Mul", "QuantizeLinear", "Reshape", "Shape", "Slice", "Squeeze", "Sub"),
        *("Transpose", "Unsqueeze", "Where"),
    )
)

FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)
INTEGERS: Final = (TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8)
DTYPES: Final = frozenset((*FLOATS, *INTEGERS, TensorProto.BOOL))

QUANTISERS: Final = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, eq=False)
class _Graph:
    """A model and tables over it: element types, and the node that makes each tensor."""

    model: ModelProto
    types: Mapping[str, int]
    producers: Mapping[str, NodeProto]


Rule: TypeAlias = Callable[[_Graph], Iterator[str]]


def lint(model: ModelProto) -> list[str]:
    """Every reason why TensorRT 10.3 would refuse or mishandle `model`; empty where none."""
    graph = _Graph(model, infer_tensor_types(model), map_producers(model))
    return [fault for rule in RULES for fault in rule(graph)]


def infer_tensor_types(model: ModelProto) -> dict[str, int]:
    """The element type (TensorProto.DataType) of every tensor of the graph, by name."""
    graph = infer_shapes(model, data_prop=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def map_producers(model: ModelProto) -> dict[str, NodeProto]:
    """The node that makes each tensor of the graph, by the tensor's name."""
    return {output: node for node in model.graph.node for output in node.output}


def _check_opset(graph: _Graph) -> Iterator[str]:
    versions = {entry.domain: entry.version for entry in graph.model.opset_import}
    if versions.get("") != OPSET:
        yield f"opset is not {OPSET}"


def _check_domains(graph: _Graph) -> Iterator[str]:
    for domain in {entry.domain: None for entry in graph.model.opset_import}:
        if domain not in ("", "ai.onnx"):
            yield f"operators of domain {domain}"


def _check_functions(graph: _Graph) -> Iterator[str]:
    if graph.model.functions:
        yield "local functions"


def _check_operators(graph: _Graph) -> Iterator[str]:
    for node in graph.model.graph.node:
        if node.op_type not in ALLOWED:
            yield f"{node.name}: operator {node.op_type}"


def _check_dtypes(graph: _Graph) -> Iterator[str]:
    for name, kind in graph.types.items():
        if kind not in DTYPES:
            yield f"{name}: type {TensorProto.DataType.Name(kind)}"


def _check_uint8(graph: _Graph) -> Iterator[str]:
    """TensorRT has uint8 inputs and outputs only, and makes the outputs from floats only."""
    ends = {value.name for value in (*graph.model.graph.input, *graph.model.graph.output)}
    for name in sorted(n for n, kind in graph.types.items() if kind == TensorProto.UINT8):
        node = graph.producers.get(name)
        if name not in ends:
            yield f"{name}: uint8 is for inputs and outputs only"
        elif node is not None and not _casts_from_float(node, graph.types):
            yield f"{name}: uint8 not made by a cast from float"


def _casts_from_float(node: NodeProto, types: Mapping[str, int]) -> bool:
    return node.op_type == "Cast" and types.get(node.input[0]) in FLOATS


def _check_quantisation(graph: _Graph) -> Iterator[str]:
    """TensorRT takes INT8 symmetric, with constant scales, and only between Q and DQ."""
    constants = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    for node in graph.model.graph.node:
        if node.op_type not in QUANTISERS:
            kinds = [graph.types.get(name) for name in (*node.input, *node.output) if name]
            if TensorProto.INT8 in kinds:
                yield f"{node.name}: {node.op_type} takes or gives INT8"
        elif any(name not in constants for name in node.input[1:]):
            yield f"{node.name}: scale or zero point is not constant"
        elif len(node.input) > 2 and numpy_helper.to_array(constants[node.input[2]]).any():
            yield f"{node.name}: zero point is not 0"


RULES: Final[tuple[Rule, ...]] = (
    _check_opset,
    _check_domains,
    _check_functions,
    _check_operators,
    _check_dtypes,
    _check_uint8,
    _check_quantisation,
)
