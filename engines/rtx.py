"""Compute capabilities of the GPUs that TensorRT for RTX compiles for."""

from __future__ import annotations

from typing import Any, Final

from rare_trt.errors import BackendError

# The library's own default, named so that it is recorded in the manifest.
RTX_CAPABILITIES: Final = ("8.0", "8.6", "8.9", "12.0", "12.1")


def find_capabilities(module: Any) -> tuple[str, ...]:
    """Those of RTX_CAPABILITIES that this release of the library, `module`, can compile for."""
    kinds = module.ComputeCapability
    return tuple(one for one in RTX_CAPABILITIES if hasattr(kinds, _member(one)))


def set_capabilities(module: Any, config: Any) -> None:
    """Makes `config` compile for all of find_capabilities; raises BackendError where one is
    refused."""
    capabilities = find_capabilities(module)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = getattr(module.ComputeCapability, _member(capability))
        if not config.set_compute_capability(member, index):
            raise BackendError(
                f"TensorRT for RTX refused compute capability {capability}: install a later release"
            )


def _member(capability: str) -> str:
    return f"SM{capability.replace('.', '')}"
