"""The TensorRT session: one route's engine on the GPU, checked at every step.

An ignored failure of TensorRT or CUDA gives zeros, which are labels like any others. So every
status is looked at, shapes are held to the engine's profile before anything is queued, and the
labels' memory is filled with a value that is no label before each run.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import prod
from threading import RLock
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rare_trt.backends import Arithmetic, EngineBackend
from rare_trt.constants import ENGINE_GOLDEN_RUNS, MAX_BUCKETS, UNWRITTEN
from rare_trt.errors import BackendError, ShapeError
from rare_trt.package.manifest import EngineEntry
from rare_trt.package.reading import Package
from rare_trt.sessions.arena import Arena, Layout, layout
from rare_trt.sessions.device import DeviceError, DeviceMemoryError, Handle
from rare_trt.sessions.device_factory import open_device
from rare_trt.sessions.nvidia import Contexts, EngineLoadError, Library, identity, shape_of
from rare_trt.sessions.session import INPUT_NAMES, LABELS, Inputs
from rare_trt.stopwatch import Stopwatch
from rare_trt.storage.cache import Cache

Sizes: TypeAlias = tuple[tuple[int, ...], ...]


class EngineHost:
    """A GPU with what the engines of a package share: stream, arena, one run at a time.

    Engines beyond `memory_limit` bytes, or beyond what the GPU has, make room for the one that is
    needed: those used longest ago are unloaded, and loaded again when their turn comes.
    """

    def __init__(self, memory_limit: int | None = None) -> None:
        self.device = open_device()
        self.arena = Arena(self.device)
        self._memory_limit = memory_limit
        self._lock = RLock()
        self._engines: OrderedDict[EngineSession, int] = OrderedDict()
        self._libraries: dict[EngineBackend, Library] = {}
        self._resources = ExitStack()
        self._open, self._lost = True, False
        try:
            with self.device.current():
                self.stream: Handle = self.device.stream()
                self._resources.callback(self.device.destroy_stream, self.stream)
                self.finished: Handle = self.device.event()
                self._resources.callback(self.device.destroy_event, self.finished)
        except DeviceError as error:
            self.close()
            raise BackendError(
                f"the GPU cannot be used ({error}): close other programs on it, or use --backend "
                "openvino"
            ) from error

    @contextmanager
    def running(self) -> Iterator[None]:
        """The GPU for one thread at a time, its context current."""
        with self._lock:
            if not self._open:
                raise BackendError("the segmenter was closed; expected an open one: load it again")
            with self._on_device():
                yield

    def settle(self) -> None:
        """Waits for what a failed run has queued: it uses memory that is about to be freed."""
        try:
            self.device.synchronize(self.stream)
        except DeviceError:
            # As after an illegal address: nothing works in this process any more.
            self._lost = True

    def library(self, backend: EngineBackend) -> Library:
        """The library of `backend`, loaded once."""
        if backend not in self._libraries:
            self._libraries[backend] = Library(backend)
        return self._libraries[backend]

    def make_room(self, session: EngineSession, size: int) -> None:
        """Unloads other engines until `size` more bytes for `session` keep the memory limit.

        To load an engine the arena makes room, too; not for its own growth, which `size` then is.
        """
        if self._memory_limit is None:
            return
        while self.device_bytes + size > self._memory_limit:
            if self.unload_oldest(but=session):
                continue
            if session in self._engines or not self.arena.device_bytes:
                raise BackendError(
                    f"route {session.entry.route} needs {_mib(size)} on top of "
                    f"{_mib(self.device_bytes)}; the memory limit is {_mib(self._memory_limit)}: "
                    "raise it"
                )
            # As large as the largest scan so far; the next run takes what it needs.
            self.arena.release()

    def used(self, session: EngineSession, size: int) -> None:
        """Notes that `session` holds an engine of `size` bytes and was used last."""
        self._engines[session] = size
        self._engines.move_to_end(session)

    def dropped(self, session: EngineSession) -> None:
        """Notes that `session` holds no engine any more."""
        self._engines.pop(session, None)

    def unload_oldest(self, but: EngineSession) -> bool:
        """Unloads the engine used longest ago other than that of `but`; False if there is none."""
        for session in self._engines:
            if session is not but:
                session.unload()
                return True
        return False

    def close(self) -> None:
        """Gives everything back, also where some of it reports faults; safe to call twice.

        Where the GPU cannot be reached, BackendError is raised and the next call tries again; not
        so where a run was lost with it, which was told then.
        """
        with self._lock:
            try:
                self._give_back()
            except BackendError:
                if not self._lost:
                    raise
                self._open = False

    def _give_back(self) -> None:
        if self._open:
            on_device = ExitStack()
            on_device.enter_context(self._on_device())
            # From here on all is released, come what may.
            self._open = False
            with ExitStack() as last:
                last.callback(self.device.close)
                last.push(on_device)
                on_device.callback(self._libraries.clear)
                on_device.callback(self._resources.close)
                on_device.callback(self.arena.release)
                for session in list(self._engines):
                    on_device.callback(session.unload)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(self.device.current())
            except DeviceError as error:
                raise BackendError(
                    f"the GPU cannot be reached ({error}): close other programs on it and try "
                    "again, or use --backend openvino"
                ) from error
            yield

    @property
    def device_bytes(self) -> int:
        """What the loaded engines and their working memory take."""
        return sum(self._engines.values()) + self.arena.device_bytes


class EngineSession:
    """One route's engine; see `Session`. Safe to use from several threads."""

    proof_runs = ENGINE_GOLDEN_RUNS
    bytes_per_voxel: float | None = None

    def __init__(
        self, host: EngineHost, package: Package, entry: EngineEntry, cache: Cache
    ) -> None:
        self.entry = entry
        self.backend: str = entry.backend
        self.precision: Arithmetic = entry.precision
        self._host, self._package, self._cache = host, package, cache
        self._labels = len(package.manifest.model.labels)
        with host.running():
            sha256 = package.manifest.files[entry.file].sha256
            library = host.library(entry.backend)
            self._key = identity(entry, sha256, library, host.device.gpu)
            self.identity = " ".join(self._key)
            self._engine: Engine | None = None
            self._load()

    def run(self, inputs: Inputs, clock: Stopwatch | None = None) -> NDArray[np.uint8]:
        """Labels [oi, oj, ok]; see `Session`.

        Raises ShapeError, before anything is queued, where the engine was not built for the
        inputs' shapes, and BackendError where the run failed; the engine is then loaded afresh
        for the next one.
        """
        sizes = checked_sizes(inputs, self.entry)
        with self._host.running():
            try:
                engine = self._engine or self._load()
                self._host.used(self, engine.size)
                labels = engine.bucket(sizes).run(inputs, clock or Stopwatch())
            except DeviceError as error:
                self._abandon()
                raise BackendError(
                    f"{self._named()} failed ({error}): free GPU memory or restart the program; "
                    "`rare-trt doctor` shows what this machine can run"
                ) from error
            except BaseException:
                # An interrupt, too, leaves work on the GPU behind.
                self._abandon()
                raise
            strange = int(labels.max(initial=0))
            if strange >= self._labels:
                self.unload()
                raise BackendError(
                    f"{self._named()} left label {strange} in its answer; expected 0 to "
                    f"{self._labels - 1}: run `rare-trt verify`, then build the engine again"
                )
        return labels

    def _abandon(self) -> None:
        """Lets go of the engine after a failed run, whose fault is what is told."""
        self._host.settle()
        with suppress(DeviceError):
            self.unload()

    def unload(self) -> None:
        """Gives back the engine's memory; the next run loads it again."""
        engine, self._engine = self._engine, None
        self._host.dropped(self)
        if engine is not None:
            engine.release()

    def close(self) -> None:
        """Gives back the engine's memory, from any thread."""
        with self._host.running():
            self.unload()

    def _load(self) -> Engine:
        entry, host = self.entry, self._host
        plan = self._package.read(entry.file)
        host.make_room(self, len(plan))
        library = host.library(entry.backend)
        while True:
            try:
                contexts = library.contexts(plan, entry, self._cache, self._key)
                break
            except EngineLoadError:
                # It may be for want of memory: TensorRT does not tell.
                if not host.unload_oldest(but=self):
                    raise
        self._engine = Engine(host, self, contexts, len(plan))
        host.used(self, len(plan))
        return self._engine

    def _named(self) -> str:
        return f"{self.backend} {self.precision} on route {self.entry.route}"


class Engine:
    """A loaded engine with its buckets: one set of shapes each, the last MAX_BUCKETS of them."""

    def __init__(
        self, host: EngineHost, session: EngineSession, contexts: Contexts, size: int
    ) -> None:
        self.size = size
        self._host, self._session, self._contexts = host, session, contexts
        self._buckets: OrderedDict[Sizes, Bucket] = OrderedDict()

    def bucket(self, sizes: Sizes) -> Bucket:
        """The bucket of `sizes`; made where it is new, or made before the arena moved."""
        bucket = self._buckets.pop(sizes, None)
        if bucket is not None and not bucket.is_current:
            bucket.release()
            bucket = None
        if bucket is None:
            while len(self._buckets) >= MAX_BUCKETS:
                _, oldest = self._buckets.popitem(last=False)
                oldest.release()
            bucket = Bucket(self._host, self._contexts, sizes)
            try:
                self._reserve(bucket.layout)
                bucket.bind()
            except BackendError:
                bucket.release()
                raise
        self._buckets[sizes] = bucket
        return bucket

    def release(self) -> None:
        """Drops the engine with its contexts and graphs."""
        buckets, self._buckets = self._buckets, OrderedDict()
        with ExitStack() as last:
            last.callback(self._contexts.release)
            for bucket in buckets.values():
                last.callback(bucket.release)

    def _reserve(self, needed: Layout) -> None:
        arena, host = self._host.arena, self._host
        host.make_room(self._session, max(0, needed.device_bytes - arena.device_bytes))
        while True:
            try:
                arena.reserve(needed)
                return
            except DeviceMemoryError:
                if not host.unload_oldest(but=self._session):
                    raise


class Bucket:
    """One set of shapes: an execution context of its own and, from the second run on, a CUDA graph.

    A graph holds addresses and the state of its context, so a context serves one set of shapes and
    one place of the arena, and a bucket is made anew for another.
    """

    def __init__(self, host: EngineHost, contexts: Contexts, sizes: Sizes) -> None:
        self._host, self._contexts = host, contexts
        self._graph: Handle | None = None
        self._generation: int | None = None
        self._runs = 0
        self._shapes = dict(zip(INPUT_NAMES, sizes, strict=True))
        self._context = contexts.create()
        try:
            self.layout = self._laid_out()
        except BackendError:
            self.release()
            raise

    def _laid_out(self) -> Layout:
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
            # Raised further on: the frames of this error hold the context.
            unknown = f"its tensors ({error})"
        if unknown:
            raise BackendError(f"the engine cannot tell the shapes of {unknown}: build it again")
        self._answer = tuple(self._shapes[f"out_{axis}"][0] for axis in "ijk")
        labels = shape_of(self._context.get_tensor_shape(LABELS))
        if labels != (1, *self._answer):
            raise BackendError(
                f"the engine gives labels of shape {labels}; expected {(1, *self._answer)}: build "
                "it again"
            )
        scratch = self._context.update_device_memory_size_for_shapes()
        if scratch <= 0:
            raise BackendError("the engine cannot tell how much memory it needs: build it again")
        return layout(self._shapes, prod(self._answer), scratch)

    @property
    def is_current(self) -> bool:
        """Whether the arena still lies where the context was told."""
        return self._generation == self._host.arena.generation

    def bind(self) -> None:
        """Gives the context its addresses in the arena."""
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
        """Copies in, runs, waits, copies out."""
        memory = self._host.arena.host.bytes
        first, count = self.layout.labels
        answer = memory[first : first + count]
        with clock("inputs"):
            for name, (offset, size) in self.layout.inputs.items():
                place = memory[offset : offset + size].view(np.float32).reshape(self._shapes[name])
                np.copyto(place, inputs[name])
            answer.fill(UNWRITTEN)
        with clock("graph"):
            self._run()
        with clock("labels"):
            return answer.reshape(self._answer).copy()

    def _run(self) -> None:
        host, device = self._host, self._host.device
        # The context settles on new shapes and addresses in its first run, which a graph must not
        # hold; and a shape seen once does not pay for a graph.
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
        """Drops graph and context, also where the frames of an exception hold this object."""
        try:
            self._drop_graph()
        finally:
            del self._context

    def _capture(self) -> None:
        host = self._host
        try:
            self._graph = host.device.captured(self._queue, host.stream)
        except BackendError as error:
            # The answers are the same; a fault that matters shows in the run that follows.
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
                "TensorRT could not queue the run: `rare-trt doctor` shows what this machine can "
                "run; build the engine on it"
            )
        if not arena.shared:
            device.copy_out(arena.host, first, arena.address + first, count, host.stream)

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._host.device.destroy_graph(graph)


def checked_sizes(inputs: Inputs, entry: EngineEntry) -> Sizes:
    """The shapes of `inputs` in the graph's order, held to what the engine was built for."""
    sizes = []
    for name in INPUT_NAMES:
        array = inputs[name]
        low, _, high = entry.profile[name]
        if array.dtype != np.float32 or not (
            len(array.shape) == len(low)
            and all(a <= n <= b for a, n, b in zip(low, array.shape, high, strict=True))
        ):
            raise ShapeError(
                f"the scan needs {name} of shape {array.shape} ({array.dtype}); the "
                f"{entry.backend} engine of route {entry.route} takes float32 from {low} to "
                f"{high}: build it again, or use --backend openvino"
            )
        sizes.append(array.shape)
    axes = dict(zip(INPUT_NAMES, sizes, strict=True))
    for axis, (name, into, out) in enumerate((f"{a}", f"in_{a}", f"out_{a}") for a in "ijk"):
        if axes[into][1] != axes["image"][2 + axis] or axes[out][1] != axes[into][0]:
            raise ShapeError(
                f"the matrices of axis {name} do not fit each other or the image: {axes}; report "
                "this with the scan's size"
            )
    return tuple(sizes)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
