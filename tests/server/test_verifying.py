"""Whose turn it is to be verified."""

from __future__ import annotations

from shoal_server.core import ModelKey
from shoal_server.registry.accuracy import Accuracy
from shoal_server.verifying import next_due

A, B, C = (ModelKey(name, "1") for name in "abc")


def at(at_s: float) -> Accuracy:
    """An outcome of then."""
    return Accuracy(1, 1.0, 1.0, None, 1.0, 0.001, "", "runtime 1", "fp32", at_s, 0.1)


def test_who_never_was_comes_first() -> None:
    """Before all that were, however long ago."""
    assert next_due([A, B], {A: at(0.0)}, now_s=1e9, interval_s=60.0) == B


def test_then_who_was_longest_ago() -> None:
    """So everybody has a turn."""
    outcomes = {A: at(30.0), B: at(10.0), C: at(20.0)}
    assert next_due([A, B, C], outcomes, now_s=1000.0, interval_s=60.0) == B
    assert next_due([A, C], outcomes, now_s=1000.0, interval_s=60.0) == C


def test_nobody_before_the_interval_is_over() -> None:
    """At the interval itself it is."""
    assert next_due([A], {A: at(100.0)}, now_s=159.0, interval_s=60.0) is None
    assert next_due([A], {A: at(100.0)}, now_s=160.0, interval_s=60.0) == A


def test_nobody_where_nothing_is_in_memory() -> None:
    """What left memory is not verified."""
    assert next_due([], {A: at(0.0)}, now_s=1000.0, interval_s=60.0) is None
