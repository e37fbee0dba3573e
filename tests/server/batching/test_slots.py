"""Slots of a device: counted, shared in turn, never given twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal_server.batching.slots import Slots


def must_not_be_called() -> None:
    raise AssertionError("called without a free slot")


def test_slots_are_given_until_there_are_none() -> None:
    """As many as there are, and no more."""
    slots = Slots(2)
    assert [slots.reserve(must_not_be_called) for _ in range(3)] == [True, True, False]
    assert slots.free == 0


def test_who_was_refused_is_called_once_when_one_is_free() -> None:
    """However often it asked, and not again after that."""
    slots = Slots(1)
    calls: list[str] = []

    def waiting() -> None:
        calls.append("waiting")

    assert slots.reserve(must_not_be_called)
    for _ in range(3):
        assert not slots.reserve(waiting)
    slots.release()
    assert calls == ["waiting"]
    assert slots.reserve(waiting)
    slots.release()
    assert calls == ["waiting"]


def test_they_are_called_in_the_order_in_which_they_asked() -> None:
    """First come, first served: each takes one slot, the others go on waiting."""
    slots = Slots(1)
    calls: list[int] = []

    def model(number: int) -> None:
        calls.append(number)
        assert slots.reserve(must_not_be_called)

    slots.reserve(must_not_be_called)
    for number in range(3):
        slots.reserve(lambda number=number: model(number))  # type: ignore[misc]
    for done in range(1, 4):
        slots.release()
        assert calls == list(range(done))
        assert slots.free == 0


def test_who_withdrew_is_not_called() -> None:
    """The next one is; to withdraw twice, or without having asked, changes nothing."""
    slots = Slots(1)
    calls: list[str] = []

    def other() -> None:
        calls.append("other")

    slots.reserve(must_not_be_called)
    slots.reserve(must_not_be_called)
    slots.reserve(other)
    slots.withdraw(must_not_be_called)
    slots.withdraw(must_not_be_called)
    slots.release()
    assert calls == ["other"]


def test_a_slot_that_is_not_wanted_any_more_is_offered_to_the_next() -> None:
    """Who has nothing to run when its turn comes does not keep the others out."""
    slots = Slots(1)
    calls: list[str] = []

    def has_nothing_left() -> None:
        calls.append("nothing left")

    def gives_it_back() -> None:
        calls.append("gives it back")
        assert slots.reserve(must_not_be_called)
        slots.release()

    def takes_it() -> None:
        calls.append("takes it")
        assert slots.reserve(must_not_be_called)

    slots.reserve(must_not_be_called)
    for callback in (has_nothing_left, gives_it_back, takes_it, must_not_be_called):
        slots.reserve(callback)
    slots.release()
    assert calls == ["nothing left", "gives it back", "takes it"]
    assert slots.free == 0


def test_several_that_come_free_together_are_all_offered() -> None:
    """A run that held the whole device gives its slots back at once, to as many as want them."""
    slots = Slots(3)
    calls: list[str] = []

    def takes_one(name: str) -> None:
        calls.append(name)
        assert slots.reserve(must_not_be_called)

    assert slots.reserve(must_not_be_called)
    assert slots.take_rest() == 2
    assert slots.take_rest() == 0
    for name in ("a", "b"):
        slots.reserve(lambda name=name: takes_one(name))  # type: ignore[misc]
    slots.release(3)
    assert calls == ["a", "b"]
    assert slots.free == 1


class Model:
    """Wants a slot for each of its runs, like a batcher."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.waiting = self.running = 0

    def pump(self) -> None:
        while self.waiting and self.slots.reserve(self.pump):
            self.waiting -= 1
            self.running += 1


MODELS = 3


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, MODELS - 1), st.booleans()), max_size=60),
)
def test_no_slot_idles_while_somebody_wants_it(count: int, steps: list[tuple[int, bool]]) -> None:
    """Through any arrivals and ends of runs: free + held = all, nobody waits beside a free one."""
    slots = Slots(count)
    models = [Model(slots) for _ in range(MODELS)]
    for number, arrives in steps:
        model = models[number]
        if arrives:
            model.waiting += 1
            model.pump()
        elif model.running:
            model.running -= 1
            slots.release()
            model.pump()
        assert slots.free + sum(each.running for each in models) == count
        assert slots.free == 0 or not any(each.waiting for each in models)
