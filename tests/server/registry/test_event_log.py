"""The log of events: numbers, the ring, and watchers that hold nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.core import ModelKey
from shoal_server.errors import EventsOutOfRange
from shoal_server.lifecycle import ModelState, Unloading, UnloadReason
from shoal_server.registry.event_log import EventLog, Watcher
from shoal_server.registry.events import Event, ModelStateChanged, ModelUnloaded
from tests.server.batching.fakes import settle

A, A2, B = ModelKey("a", "1"), ModelKey("a", "2"), ModelKey("b", "1")


class Tally:
    """What the log told its observer."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.watchers = 0

    def event_published(self, kind: str) -> None:
        self.kinds.append(kind)

    def watchers_changed(self, watchers: int) -> None:
        self.watchers = watchers


def new_log(history: int = 100) -> EventLog:
    return EventLog(history, wall_clock=lambda: 1234.5, observer=Tally())


def loading(key: ModelKey = A) -> Event:
    return ModelStateChanged(key, ModelState.REGISTERED, ModelState.LOADING, "")


def unloaded(key: ModelKey = A) -> Event:
    return ModelUnloaded(key, Unloading(UnloadReason.ASKED))


async def numbers(watcher: Watcher, up_to: int) -> list[int]:
    """The numbers that are read until the watcher stands at `up_to`."""
    found = []
    while watcher.position < up_to and (entry := await watcher.read(at_most=1)):
        found.append(entry.sequence)
    return found


async def wanted(
    log: EventLog, subjects: Set[str] = frozenset(), kinds: Set[str] = frozenset()
) -> list[int]:
    """The numbers of all that is kept and wanted."""
    with log.watch(after=0, subjects=subjects, kinds=kinds) as watcher:
        found = []
        while watcher.position < log.newest:
            entry = await watcher.read(at_most=1)
            found += [entry.sequence] if entry else []
        return found


async def test_events_come_in_order_with_their_number_and_time() -> None:
    """Numbers count from 1 without gaps; the event is the one that was published."""
    log = new_log()
    events = [loading(A), loading(B), unloaded(A)]
    with log.watch() as watcher:
        for event in events:
            log.publish(event)
        entries = [await watcher.read() for _ in events]
    assert [(n, 1234.5, event) for n, event in enumerate(events, 1)] == [
        (entry.sequence, entry.at_s, entry.event) for entry in entries if entry
    ]


async def test_a_watcher_sees_what_happens_from_then_on() -> None:
    """Not what was before, unless it asks."""
    log = new_log()
    log.publish(loading(A))
    with log.watch() as watcher:
        log.publish(loading(B))
        entry = await watcher.read()
    assert entry is not None
    assert (entry.sequence, entry.event) == (2, loading(B))


async def test_a_waiting_reader_is_woken() -> None:
    """Reading waits for the event, without a clock."""
    log = new_log()
    with log.watch() as watcher:
        reading = asyncio.create_task(watcher.read())
        await settle()
        assert not reading.done()
        log.publish(loading())
        entry = await reading
    assert entry is not None
    assert entry.sequence == 1


async def test_history_begins_with_the_oldest_that_is_kept() -> None:
    """0 asks for no certain event, so it is never out of range."""
    log = new_log(history=3)
    for _ in range(10):
        log.publish(loading())
    assert await wanted(log) == [8, 9, 10]


@pytest.mark.parametrize("after", [1, 6, 11])
async def test_what_is_not_there_is_refused_with_where_to_go_on(after: int) -> None:
    """Gone, or never given: the number to resume after leads to the oldest that is kept."""
    log = new_log(history=3)
    for _ in range(10):
        log.publish(loading())
    with pytest.raises(EventsOutOfRange) as refused, log.watch(after=after):
        pass
    assert refused.value.metadata == {"resume_after": "7", "instance_id": log.instance_id}
    with log.watch(after=7) as watcher:
        assert await numbers(watcher, 10) == [8, 9, 10]


async def test_the_newest_number_and_the_one_before_the_oldest_are_in_range() -> None:
    """Both ends: nothing of what follows them is missing."""
    log = new_log(history=3)
    for _ in range(10):
        log.publish(loading())
    with log.watch(after=7) as first, log.watch(after=10) as last:
        log.publish(loading())
        assert await numbers(last, 11) == [11]
        with pytest.raises(EventsOutOfRange):
            await first.read()  # by now 8 is gone


async def test_a_slow_reader_is_cut_off_when_its_next_event_leaves_the_ring() -> None:
    """Not before; it is told at once, though it does not read, and others go on."""
    log = new_log(history=3)
    with log.watch() as slow, log.watch() as quick:
        for _ in range(3):
            log.publish(loading())
        assert await numbers(quick, 3) == [1, 2, 3]
        assert not slow.cut_off.is_set()
        log.publish(loading())
        assert (slow.cut_off.is_set(), quick.cut_off.is_set()) == (True, False)
        with pytest.raises(EventsOutOfRange, match="event 1 is no longer kept: the oldest is 2"):
            await slow.read()
        assert await numbers(quick, 4) == [4]


async def test_filters_leave_out_what_is_not_wanted() -> None:
    """By model, by version, by kind, and both together; none: everything."""
    log = new_log()
    for event in (loading(A), loading(A2), loading(B), unloaded(A), unloaded(B)):
        log.publish(event)
    assert await wanted(log) == [1, 2, 3, 4, 5]
    assert await wanted(log, subjects={"a"}) == [1, 2, 4]
    assert await wanted(log, subjects={"a@2", "b"}) == [2, 3, 5]
    assert await wanted(log, kinds={"model_unloaded"}) == [4, 5]
    assert await wanted(log, subjects={"a@1"}, kinds={"model_unloaded"}) == [4]


async def test_an_event_about_no_model_is_for_those_who_want_all() -> None:
    """A filter by model leaves it out."""

    class Something(Event):
        kind = "something"

    log = new_log()
    log.publish(Something())
    assert await wanted(log) == [1]
    assert await wanted(log, subjects={"a"}) == []


async def test_a_reader_of_rare_events_learns_how_far_it_is() -> None:
    """After so many that it does not want, so that it can resume from there."""
    log = new_log()
    for _ in range(5):
        log.publish(loading(A))
    log.publish(loading(B))
    with log.watch(after=0, subjects={"b"}) as watcher:
        assert (await watcher.read(at_most=3), watcher.position) == (None, 3)
        entry = await watcher.read(at_most=3)
    assert entry is not None
    assert entry.sequence == 6


async def test_watchers_and_events_are_counted() -> None:
    """The observer hears of each event by kind, and of watchers that come and go."""
    tally = Tally()
    log = EventLog(10, wall_clock=lambda: 0.0, observer=tally)
    with log.watch():
        with log.watch():
            assert tally.watchers == 2
        log.publish(loading())
        log.publish(unloaded())
        assert tally.watchers == 1
    assert (tally.watchers, tally.kinds) == (0, ["model_state_changed", "model_unloaded"])


def test_two_logs_have_two_ids() -> None:
    """A client can tell a server that started again."""
    assert new_log().instance_id != new_log().instance_id


@given(
    history=st.integers(1, 6),
    steps=st.lists(st.sampled_from(["publish", "read"]), max_size=60),
)
def test_a_reader_misses_nothing_or_is_told(history: int, steps: list[str]) -> None:
    """Whatever the order of publishing and reading: the next number, or being cut off.

    And the log keeps exactly the last `history` events.
    """

    async def run() -> None:
        log, last = new_log(history), 0
        with log.watch() as watcher:
            for step in steps:
                if step == "publish":
                    log.publish(loading())
                    assert log.newest - log.oldest + 1 == min(history, log.newest)
                elif log.newest > last:
                    if last + 1 < log.oldest:
                        assert watcher.cut_off.is_set()
                        with pytest.raises(EventsOutOfRange):
                            await watcher.read()
                        return
                    entry = await watcher.read()
                    assert entry is not None
                    assert entry.sequence == last + 1
                    last += 1

    asyncio.run(run())
