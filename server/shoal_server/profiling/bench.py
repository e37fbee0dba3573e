"""Runs the batches of a sweep on a model's session, as long as that is in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition
from shoal_server.inference.backend import Backend
from shoal_server.loading import LoadedModel
from shoal_server.profiling.memory import GrowthProbe, room_bytes
from shoal_server.profiling.plan import Shape
from shoal_server.profiling.sweep import TimedRun
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.probes import Memory


class SessionBench:
    """The session that a sweep began with. Belongs to the event loop's thread.

    It is borrowed for each run anew, so that a sweep keeps no model in memory that has
    to make room, and no unloading or switch waits for more than a run.
    """

    def __init__(
        self,
        pool: SessionPool[LoadedModel],
        model: LoadedModel,
        *,
        growth: GrowthProbe,
        memory: Callable[[], Iterable[Memory]],
        threshold: float,
    ) -> None:
        """Run nothing yet.

        Args:
            pool: Lends the session.
            model: The session.
            growth: Tells what a run takes.
            memory: The limits of the device's memory that hold; blocks.
            threshold: Share of them that may be in use, with a run.
        """
        self._pool = pool
        self._model = model
        self._growth = growth
        self._memory = memory
        self._threshold = threshold
        manifest = model.version.manifest
        self._token_id = min(model.tokenizer.pad_id, manifest.vocabulary_size - 1)

    async def run(self, shape: Shape, *, fresh: bool) -> TimedRun:
        """Run one batch when it is its turn; see `sweep.Bench`.

        Raises:
            FailedPrecondition: The session has left memory, or another took its place.
            InferenceFailed: The run failed.
        """
        lease = self._pool.look_into(self._model.version.key)
        if lease is None:
            raise _left(self._model.version.key)
        with lease:
            if lease.session is not self._model:
                raise _left(self._model.version.key)
            if fresh:
                await self._model.shrink()
            return await self._model.run_beside(lambda backend: self._timed(backend, shape, fresh))

    async def room_bytes(self) -> int | None:
        """Memory that a run may take; None: nobody knows."""
        limits = await asyncio.to_thread(self._memory)
        return room_bytes(limits, self._threshold)

    def _timed(self, backend: Backend, shape: Shape, fresh: bool) -> TimedRun:
        """In a worker thread. The texts are made of one token: that costs what others cost."""
        began_s = time.monotonic()
        if fresh:
            self._growth.begin()
        sequences = [[self._token_id] * shape.length] * shape.items
        result = backend.run(sequences, [False] * shape.items)
        memory_bytes = self._growth.bytes() if fresh else None
        return TimedRun(result.seconds, time.monotonic() - began_s, memory_bytes)


def _left(key: ModelKey) -> FailedPrecondition:
    return FailedPrecondition(
        f"model {key} left memory, or was loaded anew, while it was being profiled",
        metadata={"model": key.name, "version": key.version},
    )
