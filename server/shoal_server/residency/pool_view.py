"""What can be seen of the sessions in memory, without changing anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic

from shoal_server.core import ModelKey
from shoal_server.residency.books import Books
from shoal_server.residency.eviction import Budget
from shoal_server.residency.idle_release import IdleRelease
from shoal_server.residency.loads import Loads
from shoal_server.residency.resident import RAM, Departure, Failure, Resident, S, Warm


class PoolView(Generic[S]):
    """The looking half of a `SessionPool`, which makes its parts."""

    _books: Books[S]
    _loads: Loads[S]
    _idle: IdleRelease[S]

    def __repr__(self) -> str:
        return f"SessionPool({self._books!r})"

    def get(self, key: ModelKey) -> Resident[S] | None:
        """The resident of `key`, in whatever state; do not change it."""
        return self._books.residents.get(key)

    def failure(self, key: ModelKey) -> Failure | None:
        """How the last load of `key` failed, if it did."""
        return self._loads.failure(key)

    def residents(self) -> list[Resident[S]]:
        """All sessions, in whatever state, the least recently used first."""
        return sorted(self._books.residents.values(), key=lambda each: each.rank)

    def departures(self) -> Mapping[ModelKey, Departure]:
        """Why and when each left memory last that was there before."""
        return self._books.departures

    def departure(self, key: ModelKey) -> Departure | None:
        """Why and when `key` left memory last, if it was there before."""
        return self._books.departures.get(key)

    def idle_left_s(self, resident: Resident[S]) -> float | None:
        """Seconds until `resident` is released, if no request comes; None: never."""
        return self._idle.left_s(resident)

    def warm(self) -> list[Warm[S]]:
        """What stays in RAM of models that left a GPU, the least recently used first."""
        return self._books.warm_on(RAM)

    def is_warm(self, key: ModelKey) -> bool:
        """Whether `key` is not in memory as a session, but stays in RAM."""
        return key in self._books.warm and key not in self._books.residents

    def warm_left_s(self, warm: Warm[S]) -> float | None:
        """Seconds until `warm` goes, if no request comes; None: never."""
        return self._idle.warm_left_s(warm)

    def counted(self, device: str) -> tuple[int, int]:
        """Models and bytes that count against the budget of `device`; warm forms are bytes."""
        return self._books.counted(device)

    def budget(self, device: str) -> Budget:
        """What `device` may hold."""
        return self._books.budgets[device]

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not balance. For tests."""
        self._books.check_integrity()

    def loading_bytes(self, device: str) -> int:
        """Bytes that the loads that go on take on `device`, at most."""
        return self._books.loading_bytes(device)

    def evictable_bytes(self, device: str) -> int:
        """Bytes on `device` that nobody uses and that may go."""
        return self._books.evictable_bytes(device)
