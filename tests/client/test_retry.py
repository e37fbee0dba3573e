"""When and where a call is tried again, as a pure function of how it failed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_client import OverloadedError, RetryPolicy, ShoalError, UnavailableError
from shoal_client.retry import Attempts, Deadline

UNREACHABLE = UnavailableError("refused")


def attempts(
    *, servers: int = 1, deadline: float = math.inf, max_attempts: int = 5, first: int = 0
) -> Attempts:
    return Attempts(
        RetryPolicy(max_attempts=max_attempts),
        deadline=Deadline(deadline, deadline),
        servers=servers,
        first_server=first,
        random=lambda: 1.0,
    )


@given(
    chance=st.floats(0, 1, exclude_max=True),
    attempt=st.integers(1, 4),
    said_s=st.floats(0, 100),
)
def test_never_sooner_than_the_server_said(chance: float, attempt: int, said_s: float) -> None:
    """Jitter only adds to RetryInfo, and by no more than the ceiling."""
    policy = RetryPolicy(initial_backoff_s=0.1, max_backoff_s=0.3)
    delay = policy.delay_s(OverloadedError("full", retry_after_s=said_s), attempt, chance)
    assert delay is not None
    assert said_s <= delay <= said_s + 0.3


def test_who_waits_is_told_how_long_and_why() -> None:
    """Only of waits: not of the next server, which is tried at once, nor of the end."""
    told: list[tuple[str, float]] = []
    policy = RetryPolicy(max_attempts=2, on_wait=lambda why, s: told.append((str(why), s)))
    tries = Attempts(policy, servers=2, random=lambda: 0.0)
    tries.delay_s(UNREACHABLE, 0.0)
    assert told == []
    tries.delay_s(OverloadedError("full", retry_after_s=2.5), 0.0)
    assert told == [("full", 2.5)]
    with pytest.raises(OverloadedError):
        tries.delay_s(OverloadedError("still full", retry_after_s=2.5), 0.0)
    assert told == [("full", 2.5)]


def test_ceiling_doubles_up_to_its_maximum() -> None:
    """Full jitter: the ceiling is initial, doubled with each attempt, then flat."""
    policy = RetryPolicy(max_attempts=9, initial_backoff_s=0.1, max_backoff_s=0.5)
    delays = [policy.delay_s(UNREACHABLE, attempt, 1.0) for attempt in range(1, 6)]
    assert delays == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_too_large_message_is_not_retried() -> None:
    """RESOURCE_EXHAUSTED without RetryInfo is gRPC's own, and permanent."""
    assert RetryPolicy().delay_s(OverloadedError("message too large"), 1, 0.5) is None


def test_very_many_attempts_do_not_overflow() -> None:
    """The ceiling stays finite however often was tried."""
    assert RetryPolicy(max_attempts=10_000).delay_s(UNREACHABLE, 1000, 0.5) == 2.5


def test_next_server_is_tried_at_once() -> None:
    """Servers that can not be reached cost no wait while another is left."""
    tries = attempts(servers=3, first=1)
    visited = [tries.server]
    delays = []
    for _ in range(5):
        delays.append(tries.delay_s(UNREACHABLE, now=0))
        visited.append(tries.server)
    assert visited == [1, 2, 0, 1, 2, 0]
    assert delays == [0, 0, 0.1, 0, 0]


def test_round_of_unreachable_servers_is_one_attempt() -> None:
    """Attempts count rounds, so that many servers do not use them up."""
    tries = attempts(servers=2, max_attempts=2)
    for _ in range(3):
        tries.delay_s(UNREACHABLE, now=0)
    with pytest.raises(UnavailableError):
        tries.delay_s(UNREACHABLE, now=0)


def test_overload_waits_although_another_server_is_left() -> None:
    """RetryInfo is obeyed also where there are several servers."""
    assert attempts(servers=2).delay_s(OverloadedError("", retry_after_s=2), now=0) == 2.1


def test_deadline_bounds_the_waits() -> None:
    """A wait that would reach the deadline raises the error in its place."""
    tries = attempts(deadline=10)
    with pytest.raises(OverloadedError):
        tries.delay_s(OverloadedError("", retry_after_s=3), now=7)


def test_progress_renews_the_attempts() -> None:
    """After progress failures count from one again, on the same server."""
    tries = attempts(max_attempts=2)
    for _ in range(5):
        tries.delay_s(UNREACHABLE, now=0)
        tries.renew()


def test_other_errors_are_raised() -> None:
    """What would fail again is raised, not retried."""
    with pytest.raises(ShoalError, match="no"):
        attempts().delay_s(ShoalError("no"), now=0)


@pytest.mark.parametrize(("deadline", "expected"), [(math.inf, None), (12.0, 2.0)])
def test_remaining_time_as_grpc_takes_it(deadline: float, expected: float | None) -> None:
    """No deadline is None."""
    assert attempts(deadline=deadline).remaining_s(now=10) == expected
