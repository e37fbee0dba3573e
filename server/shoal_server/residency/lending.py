"""Leases: who has borrowed a session, and what the last one that comes back lets happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from shoal_server.residency.books import Books
from shoal_server.residency.idle_release import IdleRelease
from shoal_server.residency.resident import Lease, Resident, S, State
from shoal_server.residency.room import RoomMaker


class Lending(Generic[S]):
    """Counts leases. Belongs to the event loop's thread."""

    def __init__(
        self,
        books: Books[S],
        room: RoomMaker[S],
        idle: IdleRelease[S],
        clock: Callable[[], float],
    ) -> None:
        """Nothing is borrowed.

        Args:
            books: Told who may leave memory.
            room: Makes the room that is missing where more is counted than fits.
            idle: Told of uses.
            clock: Monotonic seconds.
        """
        self._books = books
        self._room = room
        self._idle = idle
        self._clock = clock

    def lend(self, resident: Resident[S], *, is_request: bool = True) -> Lease[S]:
        """Borrow what is in memory; only a request counts as a use."""
        assert resident.session is not None  # noqa: S101
        resident.leases += 1
        resident.unasked = False
        resident.last_used_s = self._clock()
        if is_request:
            resident.uses += 1
            self._idle.lent(resident)
        return Lease(resident, resident.session, self._release)

    def look_into(self, resident: Resident[S]) -> Lease[S]:
        """As `lend`, but nobody has used it then."""
        assert resident.session is not None  # noqa: S101
        resident.leases += 1
        return Lease(resident, resident.session, self._looked_into)

    def came_back(self, resident: Resident[S]) -> None:
        """A lease is back: tell those who wait for the last one."""
        if resident.leases == 0:
            resident.unused.set()
            self._books.may_leave(resident)
            if resident.device in self._books.overfull:
                self._room.evict_excess(resident.device)

    def _release(self, resident: Resident[S]) -> None:
        resident.leases -= 1
        resident.last_used_s = self._clock()
        if resident.state is State.READY and resident.session is not None:
            resident.session.lease_ended()
        self.came_back(resident)

    def _looked_into(self, resident: Resident[S]) -> None:
        resident.leases -= 1
        self.came_back(resident)
