"""Room for a newcomer: who leaves for it, and how long it waits."""

from __future__ import annotations

import asyncio
from typing import Generic

from shoal_server.core import ModelKey
from shoal_server.errors import FailedPrecondition, Overloaded, ShoalError
from shoal_server.lifecycle import Unloading, UnloadReason
from shoal_server.residency.books import Books
from shoal_server.residency.closing import Closing
from shoal_server.residency.eviction import Plan, Room, make_room
from shoal_server.residency.resident import Resident, S, State
from shoal_server.residency.warm import WarmForms

# After the memory that a victim frees, the first retry has a chance.
_RETRY_WHEN_BUSY_S = 1.0


class RoomMaker(Generic[S]):
    """Lets sessions into their device's budget. Belongs to the event loop's thread."""

    def __init__(
        self, books: Books[S], closing: Closing[S], warm: WarmForms[S], eviction_wait_s: float
    ) -> None:
        self._books = books
        self._closing = closing
        self._warm = warm
        self._eviction_wait_s = eviction_wait_s

    async def let_in(self, resident: Resident[S]) -> None:
        """Count `resident` against its device's budget, evicting for it where needed.

        Raises:
            FailedPrecondition: It is larger than the whole budget.
            Overloaded: Nobody left in time.
        """
        books, device = self._books, resident.device
        deadline_s = books.clock() + self._eviction_wait_s
        while True:
            books.room_changed.clear()
            plan = make_room(books.occupants(device), resident.size_bytes, books.budgets[device])
            match plan.room:
                case Room.FITS:
                    resident.counted = True
                    books.counts_changed()
                    return
                case Room.NEVER:
                    raise self._too_large(resident)
                case _ if resident.unasked:
                    raise self._not_for_it(resident)
                case Room.EVICT:
                    why = Unloading(UnloadReason.EVICTED, resident.key)
                    for key in plan.warm_victims:
                        self._warm.release(books.warm[key], why)
                    for key in plan.victims:
                        self._closing.start(books.residents[key], why)
                case Room.BUSY | Room.WAIT:
                    pass
            try:
                async with asyncio.timeout(self._patience_s(device, plan, deadline_s)):
                    await books.room_changed.wait()
            except TimeoutError:
                raise self._no_room(resident) from None

    def evict_excess(self, device: str, newcomer: ModelKey | None = None) -> None:
        """Measured larger than predicted, a session may have pushed `device` over its budget.

        What can not leave now is tried again when its leases are back. The last session
        stays: nobody would gain by loading it again for every request.
        """
        books = self._books
        books.overfull.discard(device)
        budget = books.budgets[device].max_bytes
        if self._goes_itself(device, newcomer):
            newcomer = None  # what is still too much is the others'
        why = Unloading(UnloadReason.EVICTED, newcomer)
        while budget is not None and books.staying_bytes(device) > budget:
            if self._warm.release_next(device, why) is not None:
                continue
            victim = books.least_recently_used(device)
            if victim is None or books.is_alone(victim):
                books.overfull.add(device)
                return
            self._closing.start(victim, why)

    def _patience_s(self, device: str, plan: Plan, deadline_s: float) -> float | None:
        """How long to wait for a change: what closes is soon gone, what is in use may not be.

        A session that another took the place of closes after its last lease, which may be
        that of a switch that waits here.
        """
        closing = any(
            each.state is State.CLOSING and not each.leases for each in self._books.on(device)
        )
        if closing and plan.room is not Room.BUSY:
            return None
        return deadline_s - self._books.clock()

    def _goes_itself(self, device: str, newcomer: ModelKey | None) -> bool:
        """Close a newcomer that nobody asks for, where others would have to leave for it."""
        books = self._books
        budget = books.budgets[device].max_bytes
        resident = books.residents.get(newcomer) if newcomer is not None else None
        if resident is None or not resident.unasked or budget is None:
            return False
        is_only = books.staying_bytes(device) == resident.size_bytes
        if is_only or books.staying_bytes(device) <= budget:
            return False
        self._closing.start(resident, Unloading(UnloadReason.EVICTED))
        return True

    def _too_large(self, resident: Resident[S]) -> ShoalError:
        budget = self._books.budgets[resident.device].max_bytes
        return FailedPrecondition(
            f"model {resident.key} needs about {resident.size_bytes} bytes, "
            f"the memory budget of {resident.device} is {budget}",
            metadata={"limit": budget, "value": resident.size_bytes},
        )

    def _not_for_it(self, resident: Resident[S]) -> ShoalError:
        return Overloaded(
            f"no free memory on {resident.device} for model {resident.key}, which nobody asks for",
            retry_after_s=_RETRY_WHEN_BUSY_S,
        )

    def _no_room(self, resident: Resident[S]) -> ShoalError:
        return Overloaded(
            f"no memory on {resident.device} for model {resident.key}: every model there is in "
            f"use or pinned, and none was released within {self._eviction_wait_s:g} s",
            retry_after_s=_RETRY_WHEN_BUSY_S,
        )
