"""Counting requests and batches by model and caller."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.core import ModelKey
from shoal_server.statistics.counts import UsageCounts
from shoal_server.statistics.statistics import OTHERS, Statistics
from tests.server.clock import Clock

A, B = ModelKey("a", "1"), ModelKey("a", "2")


def answered(statistics: Statistics, caller: str, key: ModelKey) -> None:
    """One request of three items."""
    statistics.answered(
        caller, key, seconds=0.01, queue_s=0.002, inference_s=0.005, items=3, tokens=20, truncated=1
    )


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def statistics(clock: Clock) -> Statistics:
    return Statistics(window_s=60, max_callers=2, clock=clock)


def test_versions_are_counted_apart(statistics: Statistics) -> None:
    """So that a canary can be compared with what it is to replace."""
    answered(statistics, "x", A)
    statistics.failed("x", B, "OVERLOADED")
    of_a, of_b = statistics.of_model(A).recent, statistics.of_model(B).recent
    assert (of_a.requests, of_a.items, of_a.tokens, of_a.truncated) == (1, 3, 20, 1)
    assert (of_a.total.max_s, of_a.queue.max_s, of_a.inference.max_s) == (0.01, 0.002, 0.005)
    assert (of_b.requests, dict(of_b.errors), of_b.total.count) == (1, {"OVERLOADED": 1}, 0)
    assert statistics.used_models() == [A, B]


def test_requests_for_no_model_are_counted_last(statistics: Statistics) -> None:
    """By no name: callers could make up any number of them."""
    statistics.failed("x", None, "MODEL_NOT_FOUND")
    answered(statistics, "x", A)
    assert statistics.used_models() == [A, None]
    assert dict(statistics.of_model(None).since_start.errors) == {"MODEL_NOT_FOUND": 1}


def test_batches(statistics: Statistics) -> None:
    """Sizes, tokens, padding and running time."""
    statistics.batch_ended(A, 8, 100, 120, 0.5)
    statistics.batch_ended(A, 8, 100, 100, 0.25)
    statistics.batch_ended(A, 1, 10, 10, 0.25)
    counts = statistics.of_model(A).recent
    assert dict(counts.batch_sizes) == {8: 2, 1: 1}
    assert (counts.batch_tokens, counts.padding_tokens, counts.running_s) == (210, 20, 1.0)


def test_what_is_not_recent_counts_since_the_start(statistics: Statistics, clock: Clock) -> None:
    """In every number of a model and of a caller."""
    answered(statistics, "x", A)
    statistics.batch_ended(A, 3, 20, 24, 0.5)
    clock.now_s = 100.0
    statistics.failed("x", A, "OVERLOADED")
    model = statistics.of_model(A)
    assert (model.recent.requests, model.recent.items, model.recent.batch_tokens) == (1, 0, 0)
    assert (model.since_start.requests, model.since_start.items) == (2, 3)
    assert (model.since_start.batch_tokens, model.since_start.total.count) == (20, 1)
    usage = statistics.usage(("x", "a"))
    assert usage.recent == UsageCounts(requests=1, failed=1)
    assert usage.since_start == UsageCounts(requests=2, failed=1, items=3, tokens=20)


def test_reading_changes_nothing(statistics: Statistics, clock: Clock) -> None:
    """Sums are made of copies, not in what they are the sums of."""
    for now_s in (0.0, 30.0, 100.0):
        clock.now_s = now_s
        answered(statistics, "x", A)
    first = statistics.of_model(A), statistics.usage(("x", "a"))
    again = statistics.of_model(A), statistics.usage(("x", "a"))
    assert first[0].since_start.requests == again[0].since_start.requests == 3
    assert first[0].since_start.total.count == again[0].since_start.total.count == 3
    assert first[1] == again[1]


def test_models_of_callers_are_bounded_too(statistics: Statistics) -> None:
    """A thousand callers of a thousand models each would be a million counts."""
    for number in range(30):
        answered(statistics, "x", ModelKey(f"m{number}", "1"))
    counted = [caller for caller, _ in statistics.used_by()]
    assert (counted.count("x"), counted.count(OTHERS)) == (20, 10)


def test_callers_beyond_the_bound_are_counted_together(statistics: Statistics) -> None:
    """Whoever came before keeps its name; nothing is lost."""
    for caller in ("x", "y", "z", "w", "x"):
        answered(statistics, caller, A)
    counted = {key[0]: statistics.usage(key).since_start.requests for key in statistics.used_by()}
    assert counted == {"x": 2, "y": 1, OTHERS: 2}


@given(
    st.lists(
        st.tuples(
            st.floats(0, 50),
            st.sampled_from("wxyz"),
            st.sampled_from([A, B, ModelKey("b", "1"), None]),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_models_and_callers_add_up_to_the_same(
    events: list[tuple[float, str, ModelKey | None, bool]],
) -> None:
    """To all that happened, of all time and lately, whoever asked for what."""
    clock = Clock(0.0)
    statistics = Statistics(window_s=60, max_callers=2, clock=clock)
    for wait_s, caller, key, is_answered in events:
        clock.now_s += wait_s
        if is_answered and key is not None:
            answered(statistics, caller, key)
        else:
            statistics.failed(caller, key, "OVERLOADED")
    models = [statistics.of_model(key) for key in statistics.used_models()]
    usage = [statistics.usage(key) for key in statistics.used_by()]
    assert sum(each.since_start.requests for each in models) == len(events)
    for span in ("recent", "since_start"):
        for name in ("requests", "items", "tokens"):
            of_models = sum(getattr(getattr(each, span), name) for each in models)
            assert of_models == sum(getattr(getattr(each, span), name) for each in usage)
        failed = sum(getattr(each, span).errors.total() for each in models)
        assert failed == sum(getattr(each, span).failed for each in usage)
