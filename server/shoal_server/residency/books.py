"""What the pool knows: its sessions, what counts against each device, who may leave.

The parts of the pool (`loads`, `room`, `closing`) share one of these and change it in
synchronous sections on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Generic

from shoal_server.core import ModelKey
from shoal_server.lifecycle import Unloading
from shoal_server.residency.eviction import Budget, Occupant
from shoal_server.residency.resident import RAM, Departure, PoolObserver, Resident, S, State, Warm


class Books(Generic[S]):
    """The sessions of a pool. Belongs to the event loop's thread."""

    def __init__(
        self,
        budgets: Mapping[str, Budget],
        observer: PoolObserver,
        clock: Callable[[], float],
    ) -> None:
        """Start empty; for the arguments see `SessionPool`."""
        self.budgets = budgets
        self.observer = observer
        self.clock = clock
        self.residents: dict[ModelKey, Resident[S]] = {}
        self.warm: dict[ModelKey, Warm[S]] = {}
        """What stays in RAM of sessions that left a GPU; counts there."""
        self.beside: list[Resident[S]] = []
        """Sessions that no key leads to: successors that are being opened, and those whose
        place another one has taken."""
        self.departures: dict[ModelKey, Departure] = {}
        """How each left that was in memory before."""
        self.overfull: set[str] = set()
        """Devices above their budget that nobody can leave just now."""
        self.room_changed = asyncio.Event()
        """Set when somebody who waits for room should look again."""
        self.coming_ended = asyncio.Event()
        """Set, and made anew, when a load or the filling of a warm form has ended."""
        self.fell_idle: Callable[[Resident[S]], None] = lambda resident: None
        """Told of a session that may be released, if nobody uses it."""

    def __repr__(self) -> str:
        return "; ".join(map(repr, (*self._all(), *self.warm.values())))

    def on(self, device: str) -> list[Resident[S]]:
        """The sessions that count against the budget of `device`."""
        return [each for each in self._all() if each.counted and each.device == device]

    def counted(self, device: str) -> tuple[int, int]:
        """Models and bytes that count against the budget of `device`.

        Warm forms are bytes, but no models.
        """
        sizes = [each.size_bytes for each in self.on(device)]
        return len(sizes), sum(sizes) + self.warm_bytes(device)

    def warm_on(self, device: str) -> list[Warm[S]]:
        """The warm forms in the memory of `device`, the least recently used first."""
        if device != RAM:
            return []
        return sorted(self.warm.values(), key=lambda each: each.last_used_s)

    def warm_bytes(self, device: str) -> int:
        """What they take."""
        return sum(each.form.size_bytes for each in self.warm_on(device))

    def staying_bytes(self, device: str) -> int:
        """Bytes counted on `device`, less those on their way out."""
        sessions = sum(each.size_bytes for each in self.on(device) if not each.leaving)
        return sessions + sum(w.form.size_bytes for w in self.warm_on(device) if not w.dropped)

    def loading_bytes(self, device: str) -> int:
        """Bytes that the loads that go on take on `device`, at most."""
        sessions = sum(each.peak_bytes for each in self.on(device) if each.begun)
        return sessions + sum(w.form.size_bytes for w in self.warm_on(device) if not w.filled)

    def evictable_bytes(self, device: str) -> int:
        """Bytes on `device` that nobody uses and that may go."""
        sessions = sum(each.size_bytes for each in self.on(device) if each.evictable)
        return sessions + sum(w.form.size_bytes for w in self.warm_on(device) if w.evictable)

    def occupants(self, device: str) -> list[Occupant]:
        """What is on `device` as the eviction policy sees it."""
        sessions = [
            Occupant(
                key=each.key,
                size_bytes=each.size_bytes,
                last_used_s=each.rank,
                evictable=each.evictable,
                leaving=each.leaving,
            )
            for each in self.on(device)
        ]
        warm = [
            Occupant(
                key=each.key,
                size_bytes=each.form.size_bytes,
                last_used_s=each.last_used_s,
                evictable=each.evictable,
                leaving=each.dropped,
                warm=True,
            )
            for each in self.warm_on(device)
        ]
        return sessions + warm

    def least_recently_used(self, device: str) -> Resident[S] | None:
        """Who would be evicted from `device` next, if anybody can."""
        evictable = [each for each in self.on(device) if each.evictable]
        return min(evictable, key=lambda each: each.rank, default=None)

    def is_alone(self, resident: Resident[S]) -> bool:
        """Whether no other session is ready on its device."""
        return all(
            each is resident or each.device != resident.device or each.state is not State.READY
            for each in self.residents.values()
        )

    def may_leave(self, resident: Resident[S]) -> None:
        """Nobody may use `resident` any longer: tell those who wait for that."""
        self.room_changed.set()
        self.fell_idle(resident)

    def strike(self, resident: Resident[S], why: Unloading) -> None:
        """The memory of `resident` is free."""
        is_beside = resident in self.beside
        if is_beside:  # the model itself goes on
            self.beside.remove(resident)
        else:
            del self.residents[resident.key]
            self.departures[resident.key] = Departure(why, self.clock())
        resident.gone.set()
        self.counts_changed()
        if not is_beside:
            self.observer.unloaded(resident.key, why)

    def end_coming(self) -> None:
        """What came into memory takes no more: let the next one see whether it may begin."""
        self.coming_ended.set()
        self.coming_ended = asyncio.Event()

    def counts_changed(self) -> None:
        """Tell those who wait for room, and the observer."""
        self.room_changed.set()
        for device in self.budgets:
            self.observer.resident_changed(device, *self.counted(device))

    def _all(self) -> list[Resident[S]]:
        return [*self.residents.values(), *self.beside]

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not balance. For tests."""
        for each in self._all():
            assert each.leases >= 0, repr(self)  # noqa: S101
            assert (each.session is not None) == (each.state is not State.LOADING), repr(self)  # noqa: S101
            assert each.counted or each.state is State.LOADING, repr(self)  # noqa: S101
        for warm in self.warm.values():
            loading = self.residents.get(warm.key)
            assert not warm.gone.is_set(), repr(self)  # noqa: S101
            if warm.in_use:
                assert loading is not None, repr(self)  # noqa: S101
                assert loading.state is State.LOADING, repr(self)  # noqa: S101
            else:  # what is in memory keeps no warm form beside it
                assert loading is None or warm.dropped, repr(self)  # noqa: S101
        for device, budget in self.budgets.items():
            models, size_bytes = self.counted(device)
            assert budget.max_models is None or models <= budget.max_models, repr(self)  # noqa: S101
            if budget.max_bytes is not None and device not in self.overfull:
                assert size_bytes <= budget.max_bytes, repr(self)  # noqa: S101
