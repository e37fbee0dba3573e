"""Work of the server's own on a model, in turn with the batches of callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from shoal_server.batching.slots import Slots

T = TypeVar("T")


class Turns:
    """Gives work one slot of the device when one is free. Belongs to the loop's thread."""

    def __init__(self, slots: Slots, executor: Executor) -> None:
        """Give nothing yet.

        Args:
            slots: Of the device.
            executor: Threads for the work, at least as many as slots.
        """
        self._slots = slots
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._working = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def take(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread, holding a slot.

        A caller that leaves before its turn takes none; one that leaves later leaves the
        work going, and the slot is free when it has ended.
        """
        await self._reserve()
        self._working += 1
        self._idle.clear()
        try:
            future = self._executor.submit(work)
        except BaseException:
            self._ended()
            raise
        future.add_done_callback(self._hop)
        return await asyncio.wrap_future(future, loop=self._loop)

    async def idle(self) -> None:
        """Return when no work is going on."""
        await self._idle.wait()

    async def _reserve(self) -> None:
        granted: asyncio.Future[None] = self._loop.create_future()

        def try_it() -> None:
            # Slots are offered around until none is free: it is taken now, or not at all.
            if not granted.done() and self._slots.reserve(try_it):
                granted.set_result(None)

        try_it()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._slots.withdraw(try_it)
            else:  # it came in the very moment in which the caller left
                self._slots.release()
            raise

    def _hop(self, _: object) -> None:
        """In the work's thread."""
        self._loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        self._working -= 1
        if not self._working:
            self._idle.set()
        self._slots.release()
