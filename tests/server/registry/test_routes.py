"""Traffic between versions: by weight, and a caller stays where it is."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shoal_server.registry.routes import Share, Split

CALLERS = [f"caller-{number}" for number in range(4000)]
# Six standard deviations of a share of 4,000 draws.
TOLERANCE = 6 * (0.25 / len(CALLERS)) ** 0.5


def split_of(name: str = "prod", **weights: int) -> Split[str]:
    return Split(name, [Share(label, weight, label) for label, weight in weights.items()])


def choices(split: Split[str]) -> dict[str, str]:
    return {caller: split.choose(caller) for caller in CALLERS}


def test_without_a_key_each_request_is_drawn_by_weight() -> None:
    """Three to one is three quarters to one."""
    split = split_of(old=3, new=1)
    drawn = Counter(split.choose("") for _ in CALLERS)
    assert abs(drawn["new"] / len(CALLERS) - 0.25) < TOLERANCE


def test_callers_are_shared_by_weight() -> None:
    """Keys are as good as dice."""
    chosen = Counter(choices(split_of(old=80, new=15, other=5)).values())
    for label, weight in {"old": 0.8, "new": 0.15, "other": 0.05}.items():
        assert abs(chosen[label] / len(CALLERS) - weight) < TOLERANCE


@given(st.text(min_size=1), st.permutations(["a", "b", "c"]))
def test_a_caller_gets_the_same_version_whatever_their_order(key: str, order: list[str]) -> None:
    """On every server, and after every restart."""
    weights = {"a": 1, "b": 5, "c": 30}
    expected = split_of(a=1, b=5, c=30).choose(key)
    shuffled = Split("prod", [Share(label, weights[label], label) for label in order])
    assert shuffled.choose(key) == expected


def test_more_weight_takes_callers_and_moves_no_others() -> None:
    """A canary that grows from 5 to 20 keeps its callers; nobody moves among the rest."""
    before = choices(split_of(old=70, other=25, new=5))
    after = choices(split_of(old=70, other=25, new=25))
    moved = {caller for caller in CALLERS if before[caller] != after[caller]}
    assert moved
    assert {after[caller] for caller in moved} == {"new"}


def test_a_caller_is_not_on_the_same_side_of_every_alias() -> None:
    """Else the callers of one canary would be those of all."""
    one, two = choices(split_of("one", old=1, new=1)), choices(split_of("two", old=1, new=1))
    same = sum(one[caller] == two[caller] for caller in CALLERS) / len(CALLERS)
    assert abs(same - 0.5) < TOLERANCE
