"""One block of GPU memory and one of pinned host memory, shared by all engines of a package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from rare_trt.constants import ARENA_ALIGNMENT
from rare_trt.sessions.device import Device, HostBuffer
from rare_trt.sessions.session import INPUT_NAMES

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Layout:
    """Offset and size, in bytes from the start of the arena, of inputs, labels and scratch memory.

    Host and device share the offsets of inputs and labels, so that one copy carries all inputs.
    """

    inputs: Mapping[str, tuple[int, int]]
    labels: tuple[int, int]
    scratch: tuple[int, int]

    @property
    def input_bytes(self) -> int:
        """Size of all inputs together, with the gaps that alignment leaves."""
        return self.labels[0]

    @property
    def host_bytes(self) -> int:
        """Size of the block of host memory."""
        return _align(sum(self.labels))

    @property
    def device_bytes(self) -> int:
        """Size of the block of GPU memory."""
        return _align(sum(self.scratch))


def layout(shapes: Mapping[str, tuple[int, ...]], label_bytes: int, scratch_bytes: int) -> Layout:
    """Places the inputs of `shapes` (float32), the labels and scratch memory in a row."""
    inputs: dict[str, tuple[int, int]] = {}
    end = 0
    for name in INPUT_NAMES:
        size = prod(shapes[name]) * FLOAT_BYTES
        inputs[name] = (end, size)
        end = _align(end + size)
    scratch = _align(end + label_bytes)
    return Layout(inputs, (end, label_bytes), (scratch, scratch_bytes))


class Arena:
    """Memory that grows to the largest layout reserved; `generation` changes with its addresses.

    Made and used under the device's context, by one thread at a time.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.generation = 0
        self.device_bytes = 0
        self._address: int | None = None
        self._host: HostBuffer | None = None

    @property
    def host(self) -> HostBuffer:
        """Pinned host memory; only after `reserve`."""
        assert self._host is not None
        return self._host

    @property
    def shared(self) -> bool:
        """Whether the GPU reads inputs and writes labels in host memory, as on a Jetson."""
        return self._device.gpu.integrated

    @property
    def io_address(self) -> int:
        """The GPU's address of inputs and labels."""
        return self.host.device_address if self.shared else self.address

    @property
    def address(self) -> int:
        """The GPU's address of scratch, and of inputs and labels where memory is not shared."""
        assert self._address is not None
        return self._address

    def reserve(self, needed: Layout) -> None:
        """Makes room for `needed`; where DeviceError is raised, keeps the part that it obtained."""
        if self._host is None or self._host.bytes.size < needed.host_bytes:
            self._release_host()
            self._host = self._device.allocate_host(needed.host_bytes)
        if self._address is None or self.device_bytes < needed.device_bytes:
            self._release_device()
            self._address = self._device.allocate(needed.device_bytes)
            self.device_bytes = needed.device_bytes

    def release(self) -> None:
        """Frees all memory, also where a part of it cannot be freed and DeviceError is raised."""
        try:
            self._release_device()
        finally:
            self._release_host()

    def _release_device(self) -> None:
        self.generation += 1
        address, self._address, self.device_bytes = self._address, None, 0
        if address is not None:
            self._device.free(address)

    def _release_host(self) -> None:
        self.generation += 1
        host, self._host = self._host, None
        if host is not None:
            self._device.free_host(host)


def _align(size: int) -> int:
    return -(-size // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
