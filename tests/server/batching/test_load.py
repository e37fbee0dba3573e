"""How much is inside, what has been coming, and how fast it leaves."""

from __future__ import annotations

import math

import pytest

from shoal_server.batching.load import DrainRate, Load, LoadMeter


def test_nothing_came_yet() -> None:
    """A fresh meter expects nobody."""
    assert LoadMeter().load == Load(-math.inf, items=0.0, tokens=0.0)
    assert LoadMeter().load.next_s >= 0.1


def test_a_quiet_hour_is_soon_forgotten() -> None:
    """When requests come fast again, the gap says so within a second."""
    meter = LoadMeter()
    meter.arrived(0.0, 1, 1)
    for at in range(150):
        meter.arrived(3600.0 + at * 0.001, 1, 1)
    assert meter.load.next_s < 0.002


def test_the_peak_is_what_was_inside_at_once() -> None:
    """Answered items leave, and the peak remembers them for as long as they may come back."""
    meter = LoadMeter()
    for _ in range(8):
        meter.arrived(1.0, 1, 12)
    meter.left(2.0, 4, 48)
    assert (meter.load.items, meter.load.tokens) == (8, 96)
    meter.check_integrity(4, 48)


def test_the_peak_is_forgotten_run_by_run() -> None:
    """When fewer callers come, it goes down to what they make."""
    meter = LoadMeter()
    meter.arrived(1.0, 64, 640)
    meter.left(2.0, 62, 620)
    for _ in range(200):
        meter.started()
    assert meter.load.items == pytest.approx(2, abs=0.01)
    assert meter.load.tokens == pytest.approx(20, abs=0.1)


def test_the_gap_is_the_mean_time_between_requests() -> None:
    """Bursts and pauses count for what they are on average."""
    meter = LoadMeter()
    now_s = 0.0
    for burst in range(200):
        now_s = burst * 0.02
        for _ in range(4):
            meter.arrived(now_s, 1, 1)
            now_s += 0.0005
    assert meter.load.next_s == pytest.approx(0.02 / 4, rel=0.3)
    assert meter.load.last_arrival_s == pytest.approx(now_s - 0.0005)


def test_callers_that_come_back_in_bursts_are_expected_soon() -> None:
    """Four that are answered together return within 2 ms, though the mean gap is 5."""
    meter = LoadMeter()
    for round_ in range(200):
        now_s = round_ * 0.02
        for place in range(4):
            meter.arrived(now_s + 0.0005 * (place + 1), 1, 10)
        meter.left(now_s + 0.0195, 4, 40)
        expected_s = meter.load.next_s
    assert expected_s < 0.002
    meter.arrived(4.0, 4, 40)
    assert meter.load.next_s == pytest.approx(0.005, rel=0.3)


def test_before_a_queue_was_seen_the_rate_is_a_guess() -> None:
    """The caller's; two slots that end at once do not turn it into millions."""
    drain = DrainRate()
    assert drain.tokens_per_s(10_000.0) == 10_000
    drain.ended(1.0, 100, waiting=True)
    drain.ended(1.00005, 100, waiting=True)
    assert drain.tokens_per_s(10_000.0) < 20_000


def test_the_rate_is_that_of_the_queue() -> None:
    """Tokens of all runs that ended while others waited, over the time it took."""
    drain = DrainRate()
    for run in range(500):
        drain.ended(run * 0.01, 50, waiting=True)
    assert drain.tokens_per_s(5000.0) == pytest.approx(5000, rel=0.01)
    assert drain.tokens_per_s(50_000.0) == pytest.approx(5000, rel=1.0)


def test_an_empty_queue_is_no_slow_queue() -> None:
    """The pause until the next request does not count."""
    drain = DrainRate()
    for run in range(500):
        drain.ended(run * 1.0, 50, waiting=True)
        drain.ended(run * 1.0 + 0.01, 50, waiting=False)
    assert drain.tokens_per_s(5000.0) == pytest.approx(5000, rel=0.01)


def test_an_old_rate_is_forgotten() -> None:
    """What a slow hour showed does not refuse callers an hour later."""
    drain = DrainRate()
    for run in range(100):
        drain.ended(run * 1.0, 100, waiting=run < 99)
    drain.ended(3700.0, 100, waiting=False)
    assert drain.tokens_per_s(10_000.0) == pytest.approx(10_000, rel=0.01)
