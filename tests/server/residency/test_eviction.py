"""Who must leave, as a pure function: occupants, need and budget in; a plan out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.core import ModelKey
from shoal_server.residency.eviction import Budget, Occupant, Plan, Room, make_room


def occupant(
    name: str, size_bytes: int = 10, *, used_s: float = 0.0, state: str = "idle"
) -> Occupant:
    return Occupant(
        key=ModelKey(name, "1"),
        size_bytes=size_bytes,
        last_used_s=used_s,
        evictable=state == "idle",
        leaving=state == "leaving",
    )


def keys(*names: str) -> tuple[ModelKey, ...]:
    return tuple(ModelKey(name, "1") for name in names)


IDLE = occupant("idle")
LEASED = occupant("leased", state="in use")
LEAVING = occupant("leaving", state="leaving")


@pytest.mark.parametrize(
    ("occupants", "need_bytes", "budget", "expected"),
    [
        ([], 10, Budget(), Plan(Room.FITS)),
        ([IDLE, LEASED], 1 << 60, Budget(), Plan(Room.FITS)),
        ([IDLE], 10, Budget(2, 20), Plan(Room.FITS)),
        ([], 20, Budget(1, 20), Plan(Room.FITS)),
        ([], 21, Budget(1, 20), Plan(Room.NEVER)),
        ([IDLE], 21, Budget(2, 20), Plan(Room.NEVER)),
        ([IDLE], 10, Budget(1, None), Plan(Room.EVICT, keys("idle"))),
        ([IDLE], 10, Budget(None, 19), Plan(Room.EVICT, keys("idle"))),
        ([LEASED], 10, Budget(1, None), Plan(Room.BUSY)),
        ([LEASED], 10, Budget(None, 19), Plan(Room.BUSY)),
        ([LEAVING], 10, Budget(1, None), Plan(Room.WAIT)),
        ([LEAVING], 10, Budget(None, 19), Plan(Room.WAIT)),
        ([LEAVING, IDLE], 10, Budget(2, None), Plan(Room.WAIT)),
        ([LEAVING, IDLE], 20, Budget(None, 20), Plan(Room.EVICT, keys("idle"))),
        ([LEASED, IDLE], 20, Budget(None, 20), Plan(Room.BUSY)),
    ],
)
def test_each_kind_of_room(
    occupants: list[Occupant], need_bytes: int, budget: Budget, expected: Plan
) -> None:
    """An example of each answer, at the edge where it turns into the next."""
    assert make_room(occupants, need_bytes, budget) == expected


def test_the_least_recently_used_go_first() -> None:
    """Victims come in order of last use, whatever order they are given in."""
    occupants = [occupant(name, used_s=at) for name, at in (("b", 2), ("c", 3), ("a", 1))]
    assert make_room(occupants, 20, Budget(None, 30)) == Plan(Room.EVICT, keys("a", "b"))


OCCUPANTS = st.lists(
    st.tuples(
        st.integers(0, 50),
        st.integers(0, 5),
        st.sampled_from(["idle", "idle", "in use", "leaving"]),
    ),
    max_size=8,
).map(
    lambda each: [
        occupant(str(n), size, used_s=used, state=state)
        for n, (size, used, state) in enumerate(each)
    ]
)
BUDGETS = st.builds(
    Budget,
    st.none() | st.integers(1, 8),
    st.none() | st.integers(0, 150),
)


def fits(occupants: list[Occupant], need_bytes: int, budget: Budget) -> bool:
    models = len(occupants) + 1
    size_bytes = sum(each.size_bytes for each in occupants) + need_bytes
    return (budget.max_models is None or models <= budget.max_models) and (
        budget.max_bytes is None or size_bytes <= budget.max_bytes
    )


@given(OCCUPANTS, st.integers(0, 100), BUDGETS)
def test_every_plan_is_right(occupants: list[Occupant], need_bytes: int, budget: Budget) -> None:
    """Each answer holds exactly when its definition does; the victims are few and oldest."""
    plan = make_room(occupants, need_bytes, budget)
    staying = [each for each in occupants if not each.leaving]
    unevictable = [each for each in staying if not each.evictable]
    by_age = sorted((each for each in staying if each.evictable), key=lambda e: e.last_used_s)
    rest = [each for each in staying if each.key not in plan.victims]

    assert (plan.room is Room.FITS) == fits(occupants, need_bytes, budget)
    assert (plan.room is Room.NEVER) == (not fits([], need_bytes, Budget(None, budget.max_bytes)))
    if plan.room in (Room.FITS, Room.NEVER):
        assert plan.victims == ()
        return
    assert (plan.room is Room.BUSY) == (not fits(unevictable, need_bytes, budget))
    assert (plan.room is Room.WAIT) == fits(staying, need_bytes, budget)
    assert (plan.room is Room.EVICT) == bool(plan.victims)
    if plan.room is Room.EVICT:
        assert plan.victims == tuple(each.key for each in by_age[: len(plan.victims)])
        assert fits(rest, need_bytes, budget)
        last = by_age[len(plan.victims) - 1]
        assert not fits([*rest, last], need_bytes, budget), "one victim too many"
