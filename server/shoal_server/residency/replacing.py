"""A session takes the place of another one of the same model, between two requests.

The successor is opened beside the one that serves, and both count against the budget.
Then, in one synchronous section, the model's key leads to the successor; the other one
is closed after its last lease. A load that fails, and a session that is to leave memory
meanwhile, leave everything as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition, ShoalError
from shoal_server.lifecycle import LoadReason, Unloading, UnloadReason
from shoal_server.registry.whole import WholeTasks
from shoal_server.residency.books import Books
from shoal_server.residency.closing import Closing
from shoal_server.residency.loads import Loads, failure_of
from shoal_server.residency.resident import Resident, S, State
from shoal_server.residency.room import RoomMaker


class Replacing(Generic[S]):
    """Replaces the sessions of one pool. Belongs to the event loop's thread."""

    def __init__(
        self, books: Books[S], loads: Loads[S], closing: Closing[S], room: RoomMaker[S]
    ) -> None:
        self._books = books
        self._loads = loads
        self._closing = closing
        self._room = room
        self._tasks = WholeTasks()

    async def replace(
        self,
        old: Resident[S],
        device: str,
        done_with: Callable[[Resident[S]], None],
        swapped: Callable[[Resident[S], Resident[S]], None],
    ) -> None:
        """See `SessionPool.replace`.

        Args:
            old: Ready; it is not evicted meanwhile.
            device: Of the new session.
            done_with: Told that `old` is no longer held.
            swapped: Called with the old and the new one, in the moment when the new one is
                the one that is lent.
        """
        task = self._tasks.start(self._replace(old, device, swapped))
        old.leases += 1

        def ended(_: asyncio.Task[None]) -> None:
            old.leases -= 1
            done_with(old)

        task.add_done_callback(ended)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise failure_of(old.key, error) from error
            raise
        except ShoalError:
            raise
        except Exception as error:
            raise failure_of(old.key, error) from error

    def _check_fits(self, old: Resident[S], new: Resident[S]) -> None:
        """Refuse at once what no waiting makes possible: `old` stays until `new` is open."""
        budget = self._books.budgets[new.device]
        if old.device != new.device:
            return
        if budget.max_models == 1:
            raise _never(old.key, old.device, "one model")
        needed_bytes = old.size_bytes + self._loads.expect_bytes(new)
        if budget.max_bytes is not None and needed_bytes > budget.max_bytes:
            limit = f"{budget.max_bytes} bytes, about {needed_bytes} are needed"
            raise _never(old.key, old.device, limit)

    async def close(self) -> None:
        """Give up all that go on; returns when they have ended."""
        await self._tasks.close()

    async def _replace(
        self,
        old: Resident[S],
        device: str,
        swapped: Callable[[Resident[S], Resident[S]], None],
    ) -> None:
        books = self._books
        began_s = books.clock()
        new: Resident[S] = Resident(
            key=old.key,
            device=device,
            state=State.LOADING,
            size_bytes=0,
            last_used_s=began_s,
            why_loaded=LoadReason.ASKED,
        )
        books.beside.append(new)
        try:
            self._check_fits(old, new)
            session = await self._loads.bring_in(new)
        except BaseException:
            books.beside.remove(new)
            books.counts_changed()
            raise
        self._loads.opened(new, session, began_s)
        # From here to the end nothing is awaited: a request gets the one or the other.
        if books.residents.get(old.key) is not old or old.state is not State.READY:
            self._closing.retire(new, Unloading(UnloadReason.REPLACED))
            raise FailedPrecondition(
                f"model {old.key} was taken out of memory while it was read again",
                metadata={"model": old.key.name, "version": old.key.version},
            )
        # As they are now: somebody may have said otherwise while it was opened.
        new.keep_alive_s, new.uses = old.keep_alive_s, old.uses
        new.unasked, new.held_until_s = old.unasked, old.held_until_s
        books.residents[old.key] = new
        books.beside.remove(new)
        books.beside.append(old)
        swapped(old, new)
        self._closing.retire(old, Unloading(UnloadReason.REPLACED))
        books.counts_changed()
        self._room.evict_excess(new.device, new.key)
        books.fell_idle(new)


def _never(key: ModelKey, device: str, limit: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"model {key} can not be read again beside the session that serves it: the budget of "
        f"{device} is {limit}; unload it and load it",
        metadata={"model": key.name, "version": key.version},
    )


def not_in_memory(key: ModelKey) -> FailedPrecondition:
    """What is said of a model that has no session to be replaced."""
    return FailedPrecondition(
        f"model {key} is not in memory", metadata={"model": key.name, "version": key.version}
    )
