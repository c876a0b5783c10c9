"""What computes a route: backends, and the precisions they compute in. Loads nothing."""

from __future__ import annotations

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


def arithmetic(precision: Precision, *, bf16: bool) -> Arithmetic:
    """What a graph of `precision` is computed in, its float parts in bf16 or not."""
    if not bf16:
        return precision
    if precision == "fp32":
        raise ValueError("float32 graphs run in float32")
    return "fp16+bf16" if precision == "fp16" else "int8+bf16"


def graph_precision(computed: Arithmetic) -> Precision:
    """The precision of the graph that is computed so."""
    if computed == "fp16+bf16":
        return "fp16"
    return "int8" if computed == "int8+bf16" else computed


def needs_bf16(computed: Arithmetic) -> bool:
    """Whether the CPU must compute in bf16."""
    return computed.endswith("+bf16")
