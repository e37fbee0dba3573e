"""Work that is done whole, even when who asked for it leaves meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from shoal_server.errors import ShoalError

log = structlog.get_logger(__name__)

T = TypeVar("T")


class WholeTasks:
    """Tasks of an owner's own, held on to until they are done."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Do all of `work`; a caller that is cancelled leaves when it is done."""
        task = self._begin(work)
        has_left = False
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                # Perhaps once more: by gRPC when the caller is gone, and by its deadline.
                has_left = True
        if has_left:
            _log_failure(task)
            raise asyncio.CancelledError
        return task.result()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin `work`; nobody needs to wait for it: the log tells of its failure."""
        task = self._begin(work)
        task.add_done_callback(_log_failure)
        return task

    async def ended(self) -> None:
        """Return when what goes on now has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Cancel what is left; returns when it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _log_failure(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, ShoalError):
        log.info("task_failed", reason=error.reason, error=error.message)
    elif error is not None:
        log.error("task_failed", exc_info=error)
