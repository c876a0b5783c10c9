"""ONNX from a route: export with dynamic shapes, simplify, name, check."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Final

import onnx
import onnxsim
import torch
from onnx import ModelProto
from torch.export import Dim

from rare_trt.errors import RareTrtError
from rare_trt.export.graph import RouteGraph
from rare_trt.export.lint import OPSET, lint
from rare_trt.sessions.session import INPUT_NAMES, LOGITS
from rare_trt.training.network import RareUNet

MAX_AXIS: Final = 4096

# Names of the dimensions. Those of the output differ: labels may lie on another grid.
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


def onnx_from_route(network: RareUNet, route: int) -> ModelProto:
    """The graph of `route` with its weights inside, checked by onnx and by the lint.

    Raises RareTrtError where TensorRT 10.3 would refuse it.
    """
    model: ModelProto
    model, _ = onnxsim.simplify(_export(RouteGraph(network, route).eval()))
    _name_dimensions(model, network.config.channels)
    _name_logits(model)
    onnx.checker.check_model(model, full_check=True)
    faults = lint(model)
    if faults:
        raise RareTrtError(f"route {route}: TensorRT 10.3 would refuse the graph: {faults}")
    return model


def _export(graph: RouteGraph) -> ModelProto:
    """The traced `graph`; every spatial axis is dynamic, working axes by whole multiples."""
    config = graph.network.config
    multiple = config.multiple(graph.route)
    image = (48, 56, 40)
    working = tuple(multiple * n for n in (2, 3, 4))
    output = (45, 33, 50)
    example = (
        torch.zeros(1, config.channels, *image),
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
    # The exporter warns about torchvision, and about dimension names that are replaced later.
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
    """Names the input of the arg-max `logits`, so that checks can fetch it by name."""
    (old,) = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = LOGITS


def _name_dimensions(model: ModelProto, channels: int) -> None:
    """Sets DIMENSIONS on inputs and outputs and drops everything derived from other names."""
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
        # The exporter records the Python source of every node, paths of this machine included.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
