"""A TensorRT engine on the GPU with its buckets."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack

from rare_trt.constants import MAX_BUCKETS
from rare_trt.errors import BackendError
from rare_trt.sessions.arena import Layout
from rare_trt.sessions.bucket import Bucket, Sizes
from rare_trt.sessions.device import DeviceMemoryError
from rare_trt.sessions.engine_host import EngineHost, EngineOwner
from rare_trt.sessions.nvidia import Contexts


class Engine:
    """A loaded engine of `size` bytes with the MAX_BUCKETS most recently used buckets."""

    def __init__(self, host: EngineHost, owner: EngineOwner, contexts: Contexts, size: int) -> None:
        self.size = size
        self._host, self._owner, self._contexts = host, owner, contexts
        self._buckets: OrderedDict[Sizes, Bucket] = OrderedDict()

    def bucket(self, sizes: Sizes) -> Bucket:
        """Returns the bucket of `sizes`, made anew where the arena has moved since its last run."""
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
        """Releases the engine with its contexts and graphs."""
        buckets, self._buckets = self._buckets, OrderedDict()
        with ExitStack() as last:
            last.callback(self._contexts.release)
            for bucket in buckets.values():
                last.callback(bucket.release)

    def _reserve(self, needed: Layout) -> None:
        arena, host = self._host.arena, self._host
        host.make_room(self._owner, max(0, needed.device_bytes - arena.device_bytes))
        while True:
            try:
                arena.reserve(needed)
                return
            except DeviceMemoryError:
                if not host.unload_oldest(keep=self._owner):
                    raise
