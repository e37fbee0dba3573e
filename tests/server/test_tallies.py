"""Our metrics, compared with prometheus_client's own: the same page for the same events."""

from __future__ import annotations

from collections.abc import Sequence

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shoal_server.tallies import Counter, Gauge, Histogram

BUCKETS = (0.1, 1.0, 5.0)


def page(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What is scraped: by a sample's name and labels, its value.

    Without the second series that prometheus_client adds to say when a metric was made.
    """
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def headers(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if line[0] == "#" and "_created" not in line]


LABELS = st.sampled_from([("a",), ('quote " and \\ backslash',), ("ünï\ncode",)])


@given(st.lists(st.tuples(LABELS, st.floats(0, 100))))
def test_counters(events: Sequence[tuple[tuple[str], float]]) -> None:
    """Sums by label, under a name that ends in _total."""
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = prometheus_client.Counter("x", "Things.", ("label",), registry=theirs)
    counter = Counter("x", "Things.", ("label",), registry=ours)
    for labels, amount in events:
        reference.labels(*labels).inc(amount)
        counter.labels(*labels).inc(amount)
    assert page(ours) == page(theirs)
    assert headers(ours) == headers(theirs)


@given(st.lists(st.tuples(LABELS, st.floats(-100, 100))))
def test_gauges(events: Sequence[tuple[tuple[str], float]]) -> None:
    """The last value by label."""
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = prometheus_client.Gauge("x", "Level.", ("label",), registry=theirs)
    gauge = Gauge("x", "Level.", ("label",), registry=ours)
    for labels, value in events:
        reference.labels(*labels).set(value)
        gauge.labels(*labels).set(value)
    assert page(ours) == page(theirs)
    assert headers(ours) == headers(theirs)


@given(st.lists(st.tuples(LABELS, st.floats(0, 10) | st.sampled_from(BUCKETS))))
def test_histograms(events: Sequence[tuple[tuple[str], float]]) -> None:
    """Cumulative buckets, bounds included, with count and sum."""
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = prometheus_client.Histogram(
        "x", "Sizes.", ("label",), buckets=BUCKETS, registry=theirs
    )
    histogram = Histogram("x", "Sizes.", ("label",), buckets=BUCKETS, registry=ours)
    for labels, value in events:
        reference.labels(*labels).observe(value)
        histogram.labels(*labels).observe(value)
    assert page(ours) == pytest.approx(page(theirs))
    assert headers(ours) == headers(theirs)


def test_without_labels_there_is_one_tally() -> None:
    """It is on the page from the start, so that nothing and no data can be told apart."""
    registry = CollectorRegistry()
    gauge = Gauge("x", "Level.", (), registry=registry)
    assert page(registry) == {("x", frozenset()): 0.0}
    gauge.labels().set(3)
    assert page(registry) == {("x", frozenset()): 3.0}


@pytest.mark.parametrize("values", [(), ("a", "b")])
def test_the_number_of_labels_is_checked(values: tuple[str, ...]) -> None:
    """A slip in the code is an error where it is made, not a strange page."""
    counter = Counter("x", "Things.", ("label",), registry=CollectorRegistry())
    with pytest.raises(ValueError, match="has the labels"):
        counter.labels(*values)


def test_names_are_unique() -> None:
    """Two metrics of one name would be one series."""
    registry = CollectorRegistry()
    Counter("x", "Things.", (), registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Gauge("x", "Level.", (), registry=registry)
