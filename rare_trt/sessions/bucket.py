"""One set of input shapes of a TensorRT engine, run on the GPU and checked at every step.

An ignored failure of TensorRT or CUDA leaves zeros, which are valid labels. So every status is
checked, and the memory of the labels is filled with a value that is no label before each run.
"""

from __future__ import annotations

import warnings
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.constants import UNWRITTEN
from rare_trt.errors import BackendError
from rare_trt.sessions.arena import Layout, layout
from rare_trt.sessions.device import Handle
from rare_trt.sessions.engine_host import EngineHost
from rare_trt.sessions.nvidia import Contexts, shape_of
from rare_trt.sessions.session import INPUT_NAMES, LABELS, Inputs
from rare_trt.stopwatch import Stopwatch

Sizes: TypeAlias = tuple[tuple[int, ...], ...]


class Bucket:
    """One set of shapes: an execution context of its own and, from the second run on, a CUDA graph.

    A graph contains addresses and the state of its context. So a context serves one set of shapes,
    and the bucket is made anew when the arena moves. Raises BackendError where the engine refuses
    the shapes.
    """

    def __init__(self, host: EngineHost, contexts: Contexts, sizes: Sizes) -> None:
        self._host, self._contexts = host, contexts
        self._graph: Handle | None = None
        self._generation: int | None = None
        self._runs = 0
        self._shapes = dict(zip(INPUT_NAMES, sizes, strict=True))
        self._context = contexts.create()
        try:
            self.layout = self._set_shapes()
        except BackendError:
            self.release()
            raise

    def _set_shapes(self) -> Layout:
        for name, shape in self._shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise BackendError(
                    f"the engine refused shape {shape} for {name}: build it again with this "
                    "rare-trt"
                )
        unknown: list[str] | str
        try:
            unknown = self._context.infer_shapes()
        except RuntimeError as error:
            # Raised below: the frames of this error hold the context.
            unknown = f"its tensors ({error})"
        if unknown:
            raise BackendError(f"the engine cannot infer the shapes of {unknown}: build it again")
        self._output_shape = tuple(self._shapes[f"out_{axis}"][0] for axis in "ijk")
        found, expected = shape_of(self._context.get_tensor_shape(LABELS)), (1, *self._output_shape)
        if found != expected:
            raise BackendError(
                f"the engine gives labels of shape {found}; expected {expected}: build it again"
            )
        scratch = self._context.update_device_memory_size_for_shapes()
        if scratch <= 0:
            raise BackendError("the engine does not report the memory it needs: build it again")
        return layout(self._shapes, prod(self._output_shape), scratch)

    @property
    def is_current(self) -> bool:
        """Whether the context has the arena's present addresses."""
        return self._generation == self._host.arena.generation

    def bind(self) -> None:
        """Sets the context's addresses in the arena; BackendError where it refuses one."""
        arena = self._host.arena
        start = arena.io_address
        scratch, size = self.layout.scratch
        addresses = {name: start + offset for name, (offset, _) in self.layout.inputs.items()}
        addresses[LABELS] = start + self.layout.labels[0]
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"the engine refused an address for {name}: build it again")
        self._context.set_device_memory(arena.address + scratch, size)
        self._generation = arena.generation

    def run(self, inputs: Inputs, clock: Stopwatch) -> NDArray[np.uint8]:
        """Copies `inputs` in, runs the engine, waits, and returns a copy of labels [oi, oj, ok].

        Raises BackendError where TensorRT fails, DeviceError where CUDA does.
        """
        memory = self._host.arena.host.bytes
        first, count = self.layout.labels
        labels = memory[first : first + count]
        with clock("inputs"):
            for name, (offset, size) in self.layout.inputs.items():
                place = memory[offset : offset + size].view(np.float32).reshape(self._shapes[name])
                np.copyto(place, inputs[name])
            labels.fill(UNWRITTEN)
        with clock("graph"):
            self._run()
        with clock("labels"):
            return labels.reshape(self._output_shape).copy()

    def _run(self) -> None:
        host, device = self._host, self._host.device
        # The first run also adapts the context to new shapes and addresses, which a graph must not
        # contain; and capturing does not pay for a shape that comes once.
        if self._graph is None and self._runs and self._contexts.capturable:
            self._capture()
        if self._graph is not None:
            device.launch(self._graph, host.stream)
        else:
            self._queue()
        device.record(host.finished, host.stream)
        device.wait(host.finished)
        if not self._runs:
            self._contexts.save()
        self._runs += 1

    def release(self) -> None:
        """Releases graph and context, also where the frames of an exception hold this object."""
        try:
            self._drop_graph()
        finally:
            del self._context

    def _capture(self) -> None:
        host = self._host
        try:
            self._graph = host.device.capture(self._queue, host.stream)
        except BackendError as error:
            # The labels are the same; a fault that matters shows in the run that follows.
            self._contexts.capturable = False
            warnings.warn(
                f"no CUDA graph could be made ({error}): runs are queued one by one, which takes "
                "longer",
                stacklevel=2,
            )

    def _queue(self) -> None:
        host, device, arena = self._host, self._host.device, self._host.arena
        first, count = self.layout.labels
        if not arena.shared:
            device.copy_in(arena.address, arena.host, 0, self.layout.input_bytes, host.stream)
            device.fill(arena.address + first, UNWRITTEN, count, host.stream)
        if not self._context.execute_async_v3(device.stream_address(host.stream)):
            raise BackendError(
                "TensorRT could not queue the run: build the engine on this machine; "
                "`rare-trt doctor` lists the usable backends"
            )
        if not arena.shared:
            device.copy_out(arena.host, first, arena.address + first, count, host.stream)

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._host.device.destroy_graph(graph)
