"""Metrics that only the event loop writes: plain additions, told to Prometheus when asked.

prometheus_client's own counters and histograms take a lock and a chain of calls for
every observation, about 35 µs a request for the ones we keep (docs/performance.md).
These take about 3. They have the same interface and are collected by its registry, but
are not safe to change from another thread.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Tally:
    """One number."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add to a counter."""
        self.value += amount

    def set(self, value: float) -> None:
        """Set a gauge."""
        self.value = value


class HistogramTally:
    """Counts by bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value in the first bucket whose bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


T = TypeVar("T", Tally, HistogramTally)


class _Family(Collector, Generic[T]):
    """The tallies of one metric, by the values of its labels."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._tallies: dict[tuple[str, ...], T] = {}
        registry.register(self)
        if not self._labels:
            self.labels()  # on the page from the start, as prometheus_client has it

    def labels(self, *values: str) -> T:
        """The tally of these label values, made when first asked for."""
        tally = self._tallies.get(values)
        if tally is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has the labels {self._labels}, not {values}")
            tally = self._tallies[values] = self._make()
        return tally

    def describe(self) -> Iterable[Metric]:
        """What `collect` gives, without the samples."""
        return [self._family()]

    @abstractmethod
    def _make(self) -> T: ...

    @abstractmethod
    def _family(self) -> Metric: ...


class _Numbers(_Family[Tally]):
    """A metric whose tallies are single numbers."""

    def _make(self) -> Tally:
        return Tally()

    @abstractmethod
    def _family(self) -> CounterMetricFamily | GaugeMetricFamily: ...

    def collect(self) -> Iterable[Metric]:
        """All tallies, for the registry."""
        family = self._family()
        for values, tally in self._tallies.items():
            family.add_metric(values, tally.value)
        return [family]


class Counter(_Numbers):
    """Only grows; its name on the page ends in `_total`."""

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self._name, self._documentation, labels=self._labels)


class Gauge(_Numbers):
    """Goes up and down."""

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._documentation, labels=self._labels)


class Histogram(_Family[HistogramTally]):
    """Values by bucket."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._bounds = tuple(buckets)
        super().__init__(name, documentation, labels, registry)

    def _make(self) -> HistogramTally:
        return HistogramTally(self._bounds)

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterable[Metric]:
        """All tallies, for the registry, in Prometheus' cumulative form."""
        family = self._family()
        for values, tally in self._tallies.items():
            buckets, total = [], 0
            for bound, count in zip((*self._bounds, float("inf")), tally.counts, strict=True):
                total += count
                name = "+Inf" if bound == float("inf") else repr(float(bound))
                buckets.append((name, float(total)))
            family.add_metric(values, buckets, sum_value=tally.sum)
        return [family]
