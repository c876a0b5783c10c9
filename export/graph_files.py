"""Graphs of routes as files, with their weights in one file that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import onnx
from onnx import ModelProto, TensorProto

# Smaller tensors stay inside the graph: parsers need shapes and scalars there.
EXTERNAL_BYTES: Final = 1024
ALIGNMENT: Final = 64


@dataclass(frozen=True, eq=False)
class GraphFiles:
    """Graphs, one per route, as file contents; all refer to one file of weights."""

    graphs: tuple[bytes, ...]
    weights: bytes


NO_FILES: Final = GraphFiles((), b"")


def files_from_models(
    models: Sequence[ModelProto], weights_name: str, beside: GraphFiles = NO_FILES
) -> GraphFiles:
    """`models`, one per route, with their weights moved to the file `weights_name`.

    Each distinct tensor is stored once. The weights start with those of the graphs `beside`, which
    stay as they are, and tensors among those are not stored again. Changes `models`.
    """
    data = bytearray()
    offsets: dict[bytes, int] = {}
    for graph in beside.graphs:
        for tensor in onnx.load_model_from_string(graph).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                place = _weights_slice(tensor)
                offsets[sha256(beside.weights[place]).digest()] = place.start
                data.extend(beside.weights[len(data) : place.stop])
    for model in models:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < EXTERNAL_BYTES:
                continue
            digest = sha256(raw).digest()
            if digest not in offsets:
                data.extend(bytes(-len(data) % ALIGNMENT))
                offsets[digest] = len(data)
                data.extend(raw)
            _refer(tensor, weights_name, offsets[digest], len(raw))
    return GraphFiles(tuple(model.SerializeToString() for model in models), bytes(data))


def load_graph(graph: bytes, weights: bytes) -> ModelProto:
    """The model in the file contents of one of GraphFiles, with its weights inside."""
    model = onnx.load_model_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = weights[_weights_slice(tensor)]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model


def _refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Replaces the values of `tensor` by a reference to bytes of the file `location`."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _weights_slice(tensor: TensorProto) -> slice:
    """The bytes of an external `tensor` in the file of weights."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    start = int(place["offset"])
    return slice(start, start + int(place["length"]))
