"""What computes a route: backends, and the precisions they compute in. Loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

EngineBackend: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]
ENGINE_BACKENDS: Final[tuple[EngineBackend, ...]] = ("tensorrt", "tensorrt-rtx")

# What a user can ask for.
Backend: TypeAlias = Literal["auto", "tensorrt", "tensorrt-rtx", "openvino"]
BACKENDS: Final[tuple[Backend, ...]] = ("auto", *ENGINE_BACKENDS, "openvino")

# What a graph is typed as.
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8")

# What a session computes in: its graph's precision, or on some CPUs with the float parts in bf16.
Arithmetic: TypeAlias = Literal["fp32", "fp16", "int8", "fp16+bf16", "int8+bf16"]
ARITHMETICS: Final[tuple[Arithmetic, ...]] = (*PRECISIONS, "fp16+bf16", "int8+bf16")

# The arithmetic of a graph whose float parts are computed in bf16; float32 graphs never are.
IN_BF16: Final[Mapping[Precision, Arithmetic]] = {"fp16": "fp16+bf16", "int8": "int8+bf16"}
NEEDS_BF16: Final = tuple(IN_BF16.values())

# The precision of the graph that is computed in an arithmetic.
GRAPH_PRECISION: Final[Mapping[Arithmetic, Precision]] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
    "fp16+bf16": "fp16",
    "int8+bf16": "int8",
}
