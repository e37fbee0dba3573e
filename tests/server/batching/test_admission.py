"""The permit to wait: who is let in, who is refused, and what the refused are told."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.batching.admission import Admission, AdmissionLimits, Permit
from shoal_server.errors import Overloaded

LIMITS = AdmissionLimits(items=10, items_per_model=6, bytes=1000)


class Door:
    """An admission whose clock and listeners are in a test's hands."""

    def __init__(self, limits: AdmissionLimits = LIMITS) -> None:
        self.now_s = 50.0
        self.told: tuple[int, int] | None = None
        self.rejected: list[str] = []
        self.admission = Admission(
            limits,
            clock=lambda: self.now_s,
            changed=self._changed,
            rejected=self.rejected.append,
        )

    def _changed(self, items: int, size_bytes: int) -> None:
        self.told = (items, size_bytes)

    def admit(self, model: str = "a", items: int = 1, size_bytes: int = 1) -> Permit:
        return self.admission.admit(model, items, size_bytes)

    @property
    def in_flight(self) -> tuple[int, int, int]:
        admission = self.admission
        return admission.requests, admission.items, admission.bytes


def test_permits_are_counted_until_they_are_back() -> None:
    """Requests, items and bytes; listeners hear of every change."""
    door = Door()
    first, second = door.admit("a", 2, 100), door.admit("b", 3, 50)
    assert door.in_flight == (2, 5, 150)
    assert door.told == (5, 150)
    door.admission.release(first)
    assert door.in_flight == (1, 3, 50)
    door.admission.release(second)
    assert door.in_flight == (0, 0, 0)
    assert door.told == (0, 0)
    assert door.rejected == []


@pytest.mark.parametrize(
    ("first", "second", "limit"),
    [
        (("a", 6, 1), ("b", 5, 1), "max_waiting_items"),
        (("a", 4, 1), ("a", 3, 1), "max_waiting_items_per_model"),
        (("a", 1, 600), ("b", 1, 401), "max_inflight_bytes"),
    ],
)
def test_each_limit_refuses_what_is_above_it(
    first: tuple[str, int, int], second: tuple[str, int, int], limit: str
) -> None:
    """The limit is named, nothing is counted for the refused, and one less is let in."""
    door = Door()
    door.admit(*first)
    before = door.in_flight
    with pytest.raises(Overloaded) as raised:
        door.admit(*second)
    assert raised.value.metadata["limit"] == limit
    assert raised.value.message.startswith(f"{limit} is ")
    assert door.rejected == [limit]
    assert door.in_flight == before
    model, items, size_bytes = second
    if limit == "max_inflight_bytes":
        door.admit(model, items, size_bytes - 1)
    else:
        door.admit(model, items - 1, size_bytes)


def test_a_refusal_names_what_was_asked_and_what_is_in_flight() -> None:
    """Numbers that let the caller see how far it was off."""
    door = Door()
    door.admit("a", 4)
    with pytest.raises(Overloaded) as raised:
        door.admit("a", 5)
    assert raised.value.metadata == {
        "limit": "max_waiting_items_per_model",
        "value": "6",
        "in_flight": "4",
        "asked": "5",
    }


@pytest.mark.parametrize("request_", [("a", 11, 1), ("a", 7, 1), ("a", 1, 1001)])
def test_a_lone_request_above_a_limit_is_let_in(request_: tuple[str, int, int]) -> None:
    """It would never fit otherwise; nobody joins it, and the door closes behind it."""
    door = Door()
    permit = door.admit(*request_)
    with pytest.raises(Overloaded):
        door.admit(*request_)
    door.admission.release(permit)
    door.admit("a", 6, 1000)


def test_room_for_one_model_is_no_matter_of_another() -> None:
    """A busy model leaves the others the rest of the server."""
    door = Door()
    door.admit("a", 6)
    with pytest.raises(Overloaded):
        door.admit("a")
    door.admit("b", 4)


def test_the_retry_delay_follows_what_requests_took() -> None:
    """Half of what is in flight, at the time an item has been taking."""
    door = Door(AdmissionLimits(items=1000, items_per_model=1000, bytes=1000))
    for _ in range(400):
        permit = door.admit("a", 10)
        door.now_s += 2.0
        door.admission.release(permit)  # ten items in two seconds
    door.admit("a", 100)
    assert door.admission.retry_after_s() == pytest.approx(100 * 0.2 / 2, rel=1e-3)


def test_the_retry_delay_has_bounds() -> None:
    """Never nothing, so that nobody hammers; never longer than half a minute."""
    door = Door(AdmissionLimits(items=10**9, items_per_model=10**9, bytes=10**9))
    assert door.admission.retry_after_s() == pytest.approx(0.05)
    permit = door.admit("a", 1)
    door.now_s += 1e6
    door.admission.release(permit)
    door.admit("a", 1000)
    assert door.admission.retry_after_s() == 30.0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abc"), st.integers(1, 12), st.integers(1, 1200)),
        st.integers(0, 9),  # release one of those in flight
    ),
    max_size=60,
)


@given(STEPS)
def test_the_books_balance(steps: list[tuple[str, int, int] | int]) -> None:
    """Whatever comes and goes: sums are right, and limits hold but for a lone request."""
    door = Door()
    held: list[Permit] = []
    for step in steps:
        if isinstance(step, int):
            if held:
                door.admission.release(held.pop(step % len(held)))
        else:
            try:
                held.append(door.admit(*step))
            except Overloaded as error:
                assert error.retry_after_s > 0
                assert held, "an empty server refuses nobody"
        by_model = Counter[str]()
        for permit in held:
            by_model[permit.model] += permit.items
        items, size_bytes = by_model.total(), sum(permit.size_bytes for permit in held)
        assert door.in_flight == (len(held), items, size_bytes)
        assert items <= LIMITS.items or len(held) == 1
        assert size_bytes <= LIMITS.bytes or len(held) == 1
        for model, of_model in by_model.items():
            alone = sum(permit.model == model for permit in held) == 1
            assert of_model <= LIMITS.items_per_model or alone
    for permit in held:
        door.admission.release(permit)
    assert door.in_flight == (0, 0, 0)
