"""Totals over restarts."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shoal_server.core import ModelKey
from shoal_server.statistics.all_time import AllTime, Past
from shoal_server.statistics.counts import UsageCounts, UsageKey
from shoal_server.statistics.statistics import OTHERS, Statistics
from shoal_server.statistics.totals import (
    CallerTotals,
    ModelTotals,
    read_usage_key,
    usage_key_text,
    within_bound,
)
from tests.server.clock import Clock

A, B = ModelKey("a", "1"), ModelKey("b", "1")
COUNTS = st.integers(0, 10**12)


def counting() -> tuple[Statistics, AllTime]:
    """A server that knows of a past with `a`, and requests for nothing."""
    statistics = Statistics(window_s=60, max_callers=10, clock=Clock(0.0))
    past = Past(
        began_s=1000.0,
        models={
            A: ModelTotals(5, 10, 100, 1, Counter({"OVERLOADED": 2})),
            None: ModelTotals(1, errors=Counter({"MODEL_NOT_FOUND": 1})),
        },
        callers={("x", "a"): CallerTotals(UsageCounts(5, 2, 10, 100), 900.0)},
    )
    return statistics, AllTime(statistics, past)


def answered(statistics: Statistics, caller: str, key: ModelKey) -> None:
    """One request of three items."""
    statistics.answered(
        caller, key, seconds=0.01, queue_s=0.002, inference_s=0.005, items=3, tokens=20, truncated=1
    )


def test_the_past_and_the_present_add_up() -> None:
    """Of models and of callers, in every number."""
    statistics, all_time = counting()
    answered(statistics, "x", A)
    statistics.failed("x", A, "OVERLOADED")
    assert all_time.of_model(A) == ModelTotals(7, 13, 120, 2, Counter({"OVERLOADED": 3}))
    assert all_time.of_caller(("x", "a")) == UsageCounts(7, 3, 13, 120)


def test_asking_does_not_count_twice() -> None:
    """The past stays as it was."""
    statistics, all_time = counting()
    answered(statistics, "x", A)
    assert all_time.of_model(A) == all_time.of_model(A)
    assert all_time.of_caller(("x", "a")) == all_time.of_caller(("x", "a"))


def test_who_came_only_before_or_only_now_is_there() -> None:
    """Models by name, those for nothing last."""
    statistics, all_time = counting()
    answered(statistics, "y", B)
    assert all_time.models() == [A, B, None]
    assert all_time.callers() == [("x", "a"), ("y", "b")]
    assert all_time.of_model(B) == ModelTotals(1, 3, 20, 1)
    assert all_time.of_caller(("x", "a")) == UsageCounts(5, 2, 10, 100)


@given(COUNTS, COUNTS, COUNTS, COUNTS, st.dictionaries(st.text(max_size=8), COUNTS))
def test_a_record_keeps_totals(
    requests: int, items: int, tokens: int, truncated: int, errors: dict[str, int]
) -> None:
    """Through JSON, to the last request."""
    totals = ModelTotals(requests, items, tokens, truncated, Counter(errors))
    assert ModelTotals.from_record(json.loads(json.dumps(totals.to_record()))) == totals
    caller = CallerTotals(UsageCounts(requests, truncated, items, tokens), 1_700_000_000)
    assert CallerTotals.from_record(json.loads(json.dumps(caller.to_record()))) == caller


@given(st.tuples(st.text(), st.text()))
def test_any_caller_can_be_a_key(key: UsageKey) -> None:
    """Operators name them as they like."""
    assert read_usage_key(usage_key_text(key)) == key


CALLERS = st.dictionaries(
    st.tuples(st.sampled_from(["x", "y", "z", OTHERS]), st.sampled_from(["a", "b"])),
    st.builds(
        CallerTotals,
        st.builds(UsageCounts, *[st.integers(0, 100)] * 4),
        st.floats(0, 1e9),
    ),
)


@given(CALLERS, st.integers(0, 8))
def test_bounding_callers_loses_no_count(callers: dict[UsageKey, CallerTotals], most: int) -> None:
    """As many keep their names as may, those who came last; the others are added up by model."""
    kept = within_bound(callers, most, OTHERS)
    named = {key for key in callers if key[0] != OTHERS}
    left = {key for key in kept if key[0] != OTHERS}
    assert len(left) == min(most, len(named))
    assert all(callers[old].seen_s <= callers[new].seen_s for old in named - left for new in left)
    for model in "ab":
        for name in ("requests", "failed", "items", "tokens"):
            before, after = (
                sum(getattr(each.counts, name) for key, each in which.items() if key[1] == model)
                for which in (callers, kept)
            )
            assert before == after
    assert all(kept[key] == callers[key] for key in left)
