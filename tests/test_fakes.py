"""The fake TensorRT is no laxer than the real one: names, arguments, and what needs no GPU."""

from __future__ import annotations

import inspect
import re
from enum import IntEnum
from typing import Any

import pytest
from fake_tensorrt import ENUMS, PARTS, ILogger, IProgressMonitor, ParserError

trt: Any = pytest.importorskip("tensorrt_rtx")

# TensorRT's own, which TensorRT for RTX lacks or has taken out.
ONLY_TENSORRT = {"EXPLICIT_BATCH"}

PARSED = re.compile(r"(\w+)\(self: [^,)]+(?:, )?(.*)\) -> ")


def public(kind: type) -> dict[str, Any]:
    """The methods and properties that a class of the fake itself has."""
    return {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }


METHODS = [
    (kind, name, value)
    for kind in (*PARTS, ILogger, IProgressMonitor, ParserError)
    for name, value in public(kind).items()
    if not isinstance(value, IntEnum)
]


@pytest.mark.parametrize(
    ("kind", "name", "value"), METHODS, ids=[f"{k.__name__}.{n}" for k, n, _ in METHODS]
)
def test_the_real_class_has_it_and_takes_the_same_arguments(
    kind: type, name: str, value: Any
) -> None:
    real = getattr(getattr(trt, kind.__name__), name)
    if isinstance(value, property):
        assert isinstance(real, property)
        return
    fake = [p for p in inspect.signature(value).parameters if p != "self"]
    # pybind11 writes one such line per overload.
    signatures = [
        [argument.split(":")[0].strip() for argument in split(found[2]) if argument]
        for found in PARSED.finditer(real.__doc__ or "")
        if found[1] == name
    ]
    assert fake in signatures, (fake, signatures)


def split(arguments: str) -> list[str]:
    """Arguments apart, without cutting inside brackets."""
    return re.split(r", (?![^\[<(]*[\]>)])", arguments)


@pytest.mark.parametrize("kind", ENUMS, ids=lambda kind: kind.__name__)
def test_the_real_enumeration_has_the_members(kind: type[IntEnum]) -> None:
    real = getattr(trt, kind.__name__)
    assert {member.name for member in kind} - ONLY_TENSORRT <= set(real.__members__)


def test_the_severities_are_the_real_ones() -> None:
    for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        assert int(getattr(ILogger, name)) == int(getattr(trt.ILogger, name))


def test_attributes_that_the_fake_sets_can_be_set_on_the_real_one() -> None:
    real = {
        "IBuilderConfig": ("builder_optimization_level", "hardware_compatibility_level"),
        "Runtime": ("engine_host_code_allowed",),
        "IRuntimeConfig": (
            "cuda_graph_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
        ),
    }
    real["IBuilderConfig"] += ("progress_monitor", "num_compute_capabilities")
    for kind, names in real.items():
        for name in names:
            attribute = getattr(getattr(trt, kind), name)
            assert isinstance(attribute, property) and attribute.fset is not None


def test_the_real_library_refuses_what_the_fake_refuses_without_a_gpu() -> None:
    """Contradictory profiles, unknown graphs, broken engines are refused and reported."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    network.add_input("image", trt.float32, (1, -1))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", trt.Dims((1, 9)), trt.Dims((1, 5)), trt.Dims((1, 7)))
    assert config.add_optimization_profile(profile) < 0
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file("/nowhere/graph.onnx") is False
    assert parser.num_errors > 0 and parser.get_error(0).desc()
