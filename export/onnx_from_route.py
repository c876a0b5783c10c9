"""ONNX from a route: exported with dynamic shapes, simplified, named, checked."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import onnx
import onnxsim
import torch
from onnx import ModelProto, TensorProto
from torch.export import Dim

from rare_trt.errors import RareTrtError
from rare_trt.export.graph import RouteGraph
from rare_trt.export.lint import OPSET, lint
from rare_trt.sessions.session import INPUT_NAMES, LOGITS
from rare_trt.training.network import RareUNet

MAX_AXIS: Final = 4096

# Smaller tensors stay inside the graph: parsers want shapes and scalars at hand.
EXTERNAL_BYTES: Final = 1024
ALIGNMENT: Final = 64

# Dimensions by name. Output dimensions have their own: labels may lie on another grid.
DIMENSIONS: Final[Mapping[str, tuple[str | int, ...]]] = {
    "image": (1, "channels", "i", "j", "k"),
    "in_i": ("I", "i"),
    "in_j": ("J", "j"),
    "in_k": ("K", "k"),
    "out_i": ("oi", "I"),
    "out_j": ("oj", "J"),
    "out_k": ("ok", "K"),
    "labels": (1, "oi", "oj", "ok"),
}


@dataclass(frozen=True, eq=False)
class GraphFiles:
    """The routes' graphs as file contents; all refer to one file of weights."""

    graphs: tuple[bytes, ...]
    weights: bytes


NOTHING: Final = GraphFiles((), b"")


def graph_files(
    models: Sequence[ModelProto], weights_name: str, beside: GraphFiles = NOTHING
) -> GraphFiles:
    """`models`, one per route, with their weights moved out; what routes share is stored once.

    Their weights follow those of the graphs `beside`, which stay as they are, and what those hold
    is not stored again.
    """
    weights = externalise(models, weights_name, beside)
    return GraphFiles(tuple(model.SerializeToString() for model in models), weights)


def onnx_from_route(network: RareUNet, route: int) -> ModelProto:
    """The graph of `route` with its weights inside, checked by onnx and by the lint."""
    model: ModelProto
    model, _ = onnxsim.simplify(_exported(RouteGraph(network, route).eval(), network, route))
    _name_dimensions(model, network.config.channels)
    _name_logits(model)
    onnx.checker.check_model(model, full_check=True)
    faults = lint(model)
    if faults:
        raise RareTrtError(f"route {route}: TensorRT 10.3 would refuse the graph: {faults}")
    return model


def load_graph(graph: bytes, weights: bytes) -> ModelProto:
    """The model that `graph_files` made into a file, its weights inside again."""
    model = onnx.load_model_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = weights[_place(tensor)]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model


def externalise(models: Sequence[ModelProto], location: str, beside: GraphFiles = NOTHING) -> bytes:
    """Moves the weights of `models` into one file at `location`, each distinct tensor once, behind
    those of the graphs `beside`."""
    data = bytearray()
    places: dict[bytes, int] = {}
    for graph in beside.graphs:
        for tensor in onnx.load_model_from_string(graph).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                place = _place(tensor)
                places[sha256(beside.weights[place]).digest()] = place.start
                data.extend(beside.weights[len(data) : place.stop])
    for model in models:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < EXTERNAL_BYTES:
                continue
            digest = sha256(raw).digest()
            if digest not in places:
                data.extend(bytes(-len(data) % ALIGNMENT))
                places[digest] = len(data)
                data.extend(raw)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", location),
                ("offset", str(places[digest])),
                ("length", str(len(raw))),
            ):
                tensor.external_data.add(key=key, value=value)
    return bytes(data)


def _place(tensor: TensorProto) -> slice:
    """Where in the file of weights an external `tensor` lies."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    start = int(place["offset"])
    return slice(start, start + int(place["length"]))


def _exported(graph: RouteGraph, network: RareUNet, route: int) -> ModelProto:
    multiple = network.config.multiple(route)
    image = (48, 56, 40)
    working = tuple(multiple * n for n in (2, 3, 4))
    output = (45, 33, 50)
    example = (
        torch.zeros(1, network.config.channels, *image),
        *(torch.zeros(w, i) for w, i in zip(working, image, strict=True)),
        *(torch.zeros(o, w) for o, w in zip(output, working, strict=True)),
    )
    i, j, k = (Dim(f"in_{axis}_size", min=2, max=MAX_AXIS) for axis in "ijk")
    units = [Dim(f"units_{axis}", min=2, max=MAX_AXIS // multiple) for axis in "ijk"]
    wi, wj, wk = (multiple * unit for unit in units)
    oi, oj, ok = (Dim(f"out_{axis}_size", min=2, max=MAX_AXIS) for axis in "ijk")
    dynamic = (
        {2: i, 3: j, 4: k},
        *({0: w, 1: n} for w, n in ((wi, i), (wj, j), (wk, k))),
        *({0: n, 1: w} for n, w in ((oi, wi), (oj, wj), (ok, wk))),
    )
    # The exporter warns about torchvision, and about dimension names that are replaced below.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUT_NAMES),
            output_names=["labels"],
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: ModelProto = program.model_proto
    return model


def _name_logits(model: ModelProto) -> None:
    """Calls what the arg-max takes `logits`, so that checks can ask for it by name."""
    (old,) = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = LOGITS


def _name_dimensions(model: ModelProto, channels: int) -> None:
    """Puts DIMENSIONS on inputs and outputs and drops everything derived from other names."""
    model.graph.ClearField("value_info")
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip(dims, DIMENSIONS[value.name], strict=True):
            if name == "channels":
                dim.dim_value = channels
            elif isinstance(name, int):
                dim.dim_value = name
            else:
                dim.dim_param = name
    model.ClearField("metadata_props")
    for node in model.graph.node:
        # The exporter notes the Python source of every node, paths of this machine included.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
