"""What was counted is there after a restart, up to the last time that it was written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import NotPersisted
from shoal_server.kept_statistics import KeptStatistics
from shoal_server.registry.store import Change, RecordStore
from shoal_server.statistics.counts import UsageCounts
from shoal_server.statistics.statistics import OTHERS, Statistics
from shoal_server.statistics.totals import ModelTotals
from shoal_server.usage.history import UsageHistory
from tests.server.clock import Clock

A = ModelKey("a", "1")


class CountingStore(RecordStore):
    """A store that counts its records, and whose disk is full when told to be."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_full = False
        self.written: list[Change] = []
        self.most_at_once = 0
        self.writes_left = 1000

    async def write(self, *changes: Change) -> None:
        if self.is_full or not self.writes_left:
            raise NotPersisted("the disk is full")
        self.writes_left -= 1
        await super().write(*changes)
        self.written += changes
        self.most_at_once = max(self.most_at_once, len(changes))


class Server:
    """The parts of a server that count, on a store of their own."""

    def __init__(self, store: CountingStore, clock: Clock, max_pairs: int = 100) -> None:
        self.store = store
        self.statistics = Statistics(window_s=60, max_callers=1000, clock=Clock(0.0))
        self.history = UsageHistory(clock)
        self.kept = KeptStatistics(
            self.statistics, self.history, store, max_pairs=max_pairs, wall_clock=clock
        )

    @property
    def all_time(self) -> tuple[ModelTotals, UsageCounts]:
        return self.kept.all_time.of_model(A), self.kept.all_time.of_caller(("x", "a"))

    def ask(self, caller: str = "x") -> None:
        """One request of three items, by the bare name."""
        self.history.asked("a")
        self.statistics.answered(
            caller, A, seconds=0.1, queue_s=0, inference_s=0.1, items=3, tokens=20, truncated=0
        )


class Machine:
    """Starts servers one after the other on the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock(1_700_000_000.0)
        self.stores: list[CountingStore] = []

    async def start(self, max_pairs: int = 100) -> Server:
        """A new server; the one before is gone, without having written."""
        await self.stop()
        store = await CountingStore.open(self.path)
        assert isinstance(store, CountingStore)
        self.stores.append(store)
        return Server(store, self.clock, max_pairs)

    async def stop(self) -> None:
        for store in self.stores:
            await store.close()


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path / ".shoal.db")
    yield machine
    await machine.stop()


async def test_what_was_written_is_there_after_a_restart(machine: Machine) -> None:
    """Totals, usage and the pattern; what was counted since is not; counting goes on."""
    server = await machine.start()
    for _ in range(2):
        server.ask()
    server.statistics.failed("x", None, "MODEL_NOT_FOUND")
    await server.kept.write()
    server.ask()

    again = await machine.start()
    assert again.all_time == (ModelTotals(2, 6, 40), UsageCounts(2, 0, 6, 40))
    assert again.kept.all_time.of_model(None).errors == {"MODEL_NOT_FOUND": 1}
    assert again.history.patterns["a"].hours.popitem()[1].count == 2
    again.ask()
    await again.kept.write()
    third = await machine.start()
    assert third.all_time == (ModelTotals(3, 9, 60), UsageCounts(3, 0, 9, 60))


async def test_the_counting_began_once(machine: Machine) -> None:
    """However often the server starts again."""
    began_s = machine.clock.now_s
    server = await machine.start()
    server.ask()
    await server.kept.write()
    machine.clock.now_s += 1e6
    again = await machine.start()
    assert again.kept.all_time.began_s == began_s


async def test_only_what_has_changed_is_written(machine: Machine) -> None:
    """And nothing where nothing has."""
    server = await machine.start()
    server.ask()
    server.ask("y")
    await server.kept.write()
    first = len(server.store.written)
    await server.kept.write()
    assert len(server.store.written) == first
    server.ask()
    await server.kept.write()
    assert {(each.kind, each.key) for each in server.store.written[first:]} == {
        ("total", "a@1"),
        ("caller", '["x", "a"]'),
        ("pattern", "a"),
    }


async def test_a_full_disk_loses_nothing_that_is_written_later(machine: Machine) -> None:
    """What was refused is written the next time."""
    server = await machine.start()
    server.ask()
    server.store.is_full = True
    with pytest.raises(NotPersisted):
        await server.kept.write()
    server.ask("y")
    server.store.is_full = False
    await server.kept.write()
    again = await machine.start()
    assert again.all_time == (ModelTotals(2, 6, 40), UsageCounts(1, 0, 3, 20))


async def test_many_changes_are_written_in_parts(machine: Machine) -> None:
    """So that requests have their turn in between."""
    server = await machine.start(max_pairs=1000)
    for number in range(250):
        server.ask(f"caller {number}")
    await server.kept.write()
    assert server.store.most_at_once == 100
    again = await machine.start(max_pairs=1000)
    assert len(again.kept.all_time.callers()) == 250


async def test_callers_of_the_past_are_bounded(machine: Machine) -> None:
    """Who came last keeps its name; the rest is counted together, in the file too."""
    server = await machine.start()
    for caller in ("x", "y", "z"):
        server.ask(caller)
        await server.kept.write()
        machine.clock.now_s += 60
    again = await machine.start(max_pairs=1)
    expected = {("z", "a"): UsageCounts(1, 0, 3, 20), (OTHERS, "a"): UsageCounts(2, 0, 6, 40)}
    all_time = again.kept.all_time
    assert {key: all_time.of_caller(key) for key in all_time.callers()} == expected
    again.ask("z")
    await again.kept.write()
    third = await machine.start()
    assert set(third.kept.all_time.callers()) == set(expected)


async def test_a_forgotten_name_is_forgotten_in_the_file(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a thousand names would be a thousand more after each restart."""
    monkeypatch.setattr("shoal_server.usage.history.MAX_NAMES", 1)
    server = await machine.start()
    server.history.asked("a")
    await server.kept.write()
    machine.clock.now_s += 3600
    server.history.asked("b")
    await server.kept.write()
    monkeypatch.undo()
    again = await machine.start()
    assert set(again.history.patterns) == {"b"}


async def test_merging_callers_of_the_past_counts_nothing_twice_or_never(machine: Machine) -> None:
    """Wherever among the writes the server is killed."""
    callers = 150
    server = await machine.start(max_pairs=1000)
    for number in range(callers):
        server.ask(f"caller {number}")
    await server.kept.write()
    writes = 0
    while True:
        again = await machine.start(max_pairs=1)
        again.history.asked("a")
        again.store.writes_left = writes
        try:
            await again.kept.write()
        except NotPersisted:
            writes += 1
        else:
            break
        fresh = await machine.start(max_pairs=1000)
        all_time = fresh.kept.all_time
        assert sum(all_time.of_caller(key).requests for key in all_time.callers()) == callers
    assert writes > 1
