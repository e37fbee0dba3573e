"""How a session leaves memory, and that a caller who gives up keeps it there."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Generic

import structlog

from shoal_server.core import ModelKey
from shoal_server.errors import ShoalError, Unavailable
from shoal_server.lifecycle import Unloading
from shoal_server.residency.books import Books
from shoal_server.residency.resident import Resident, S, State
from shoal_server.residency.tasks import Tasks
from shoal_server.residency.warm import WarmForms

log = structlog.get_logger(__name__)


class Closing(Generic[S]):
    """Closes the sessions of one pool. Belongs to the event loop's thread."""

    def __init__(self, books: Books[S], warm: WarmForms[S]) -> None:
        self._books = books
        self._warm = warm
        self._tasks = Tasks()

    async def unload(self, key: ModelKey, why: Unloading, force_after_s: float | None) -> None:
        """See `SessionPool.unload`."""
        while (resident := self._books.residents.get(key)) and resident.state is State.LOADING:
            assert resident.loaded is not None  # noqa: S101
            with suppress(ShoalError):
                await asyncio.shield(resident.loaded)
        if resident is None:
            return
        if resident.state is not State.CLOSING:
            await self._leave(resident, why, force_after_s)
        await resident.gone.wait()

    def start(self, resident: Resident[S], why: Unloading) -> None:
        """The point of no return: a task of its own closes it, whoever asked for it."""
        self._lend_no_more(resident, why)
        resident.state = State.CLOSING
        self._tasks.spawn(self._close(resident))

    def retire(self, resident: Resident[S], why: Unloading) -> None:
        """Close a session that no key leads to, after its last lease; nobody is told."""
        resident.why_unloading = why
        resident.state = State.CLOSING
        self._tasks.spawn(self._close(resident))

    async def now(self, resident: Resident[S], why: Unloading) -> None:
        """Close a session that nobody uses; returns when its memory is free."""
        self._lend_no_more(resident, why)
        await self._free(resident)

    async def ended(self) -> None:
        """Return when the closings that go on now have ended."""
        await self._tasks.ended()

    async def _leave(
        self, resident: Resident[S], why: Unloading, force_after_s: float | None
    ) -> None:
        """Lend `resident` no more, and start to close it when nobody uses it, or by force."""
        assert resident.session is not None  # noqa: S101
        self._lend_no_more(resident, why)
        resident.unloads += 1
        try:
            async with asyncio.timeout(force_after_s):
                await self._wait_unused(resident)
        except TimeoutError:
            resident.session.abort(Unavailable(f"model {resident.key} was unloaded by force"))
        except asyncio.CancelledError:
            if resident.state is State.LEAVING and resident.unloads == 1:
                self._stay(resident)
            raise
        finally:
            resident.unloads -= 1
        if resident.state is State.LEAVING:
            self.start(resident, why)

    def _lend_no_more(self, resident: Resident[S], why: Unloading) -> None:
        """Tell why it goes, once: the first reason is the one."""
        if resident.state is State.READY:
            resident.state = State.LEAVING
            resident.why_unloading = why
            self._books.observer.unloading(resident.key, why)

    def _stay(self, resident: Resident[S]) -> None:
        """Undo leaving; whoever waited for it to be gone finds it ready."""
        resident.state = State.READY
        resident.why_unloading = None
        self._books.observer.stayed(resident.key)
        resident.gone.set()
        resident.gone = asyncio.Event()
        self._books.may_leave(resident)

    async def _wait_unused(self, resident: Resident[S]) -> None:
        while resident.leases:
            resident.unused.clear()
            await resident.unused.wait()

    async def _close(self, resident: Resident[S]) -> None:
        await self._wait_unused(resident)  # only what leaves by force is still in use
        await self._free(resident)

    async def _free(self, resident: Resident[S]) -> None:
        resident.state = State.CLOSING
        why = resident.why_unloading
        assert why is not None  # noqa: S101
        assert resident.session is not None  # noqa: S101
        form = self._warm.form_of(resident)
        try:
            await resident.session.close()
            if form is not None and self._warm.keep(resident, form):
                why = replace(why, stays_warm=True)
        except Exception:
            log.exception("close_failed", model=str(resident.key))
        finally:
            # Only now is the memory free, and only now does it stop to count.
            self._books.strike(resident, why)
