"""When a failed call is tried again, where, and after how long. No I/O."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from shoal_client.errors import (
    DeadlineExceededError,
    OverloadedError,
    ShoalError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# What gRPC itself says when the time is over before there is an answer.
_GRPC_TIMED_OUT = "Deadline Exceeded"


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must be over.

    Attributes:
        at: On the clock of `now`; infinity for never.
        timeout_s: What the caller gave for it, for the error that names it.
    """

    at: float = math.inf
    timeout_s: float = math.inf


NO_DEADLINE = Deadline()


@dataclass(frozen=True, slots=True)
class Clock:
    """Time and chance, to be replaced in tests.

    Attributes:
        now: Seconds on a clock that never goes back.
        random: A number in [0, 1).
        wait: Blocks for some seconds, or until the event is set.
        sleep: The same for tasks, which are cancelled instead.
    """

    now: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random.random
    wait: Callable[[threading.Event, float], object] = threading.Event.wait
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after how long, a call that can still succeed is tried again.

    Retried are calls that no server took (UNAVAILABLE) and calls that a server
    had no room for and said when to come back (RESOURCE_EXHAUSTED with
    RetryInfo). Those of Shoal's calls that are not idempotent are made once,
    whatever this says (`Client.rollback_model`). Everything else would fail
    again: RESOURCE_EXHAUSTED without RetryInfo is gRPC's own refusal of a
    message that is too large.

    Attributes:
        max_attempts: Tries in all; 1 turns retries off.
        initial_backoff_s: Upper bound of the first wait; doubles with each try.
        max_backoff_s: Upper bound of every wait.
        on_wait: Told how a try failed, and for how many seconds the next one waits; from
            the thread or task that calls. Must not block or raise.
    """

    max_attempts: int = 5
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    on_wait: Callable[[ShoalError, float], None] | None = None

    def delay_s(self, error: ShoalError, attempt: int, chance: float) -> float | None:
        """Seconds to wait before the next try; None when there is none.

        Back-off with full jitter (Brooker, "Exponential Backoff and Jitter", AWS
        2015). Where the server said how long to wait, the jitter comes on top,
        so that those it turned away together do not come back together.

        Args:
            error: How this try failed.
            attempt: Which try it was, from 1.
            chance: A random number in [0, 1).
        """
        if attempt >= self.max_attempts or not _can_succeed_later(error):
            return None
        ceiling = min(self.max_backoff_s, math.ldexp(self.initial_backoff_s, attempt - 1))
        return (error.retry_after_s or 0.0) + chance * ceiling


class Attempts:
    """The tries of one call: which server each goes to, and the waits between them.

    Servers are taken in turn. Where one can not be reached the next is tried at
    once; only when none can does it count as a failed attempt and waits.

    Attributes:
        server: Index of the server that the next try goes to.
        deadline: On the clock of `now`; infinity for none.
    """

    __slots__ = (
        "_attempt",
        "_last",
        "_policy",
        "_random",
        "_servers",
        "_timeout_s",
        "_unreachable",
        "deadline",
        "server",
    )

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        deadline: Deadline = NO_DEADLINE,
        servers: int = 1,
        first_server: int = 0,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.server = first_server % servers
        self.deadline = deadline.at
        self._timeout_s = deadline.timeout_s
        self._last: ShoalError | None = None
        self._policy = policy
        self._servers = servers
        self._random = random
        self._attempt = 1
        self._unreachable = 0

    def remaining_s(self, now: float) -> float | None:
        """Seconds until the deadline, as gRPC's `timeout` takes it."""
        return None if self.deadline == math.inf else self.deadline - now

    def delay_s(self, error: ShoalError, now: float) -> float:
        """Seconds to wait before the next try, which goes to `server`.

        Raises:
            ShoalError: `error`, when there is no next try or no time for one. If a
                deadline cut off a try after others, it tells also how those ended.
        """
        if isinstance(error, DeadlineExceededError):
            if error.message == _GRPC_TIMED_OUT:
                error.message = _no_answer_within(self._timeout_s)
            self.explain(error)
            raise error
        self.server = (self.server + 1) % self._servers
        if isinstance(error, UnavailableError) and error.retry_after_s is None:
            self._unreachable += 1
            if self._unreachable < self._servers:
                self._last = error
                return 0.0
        self._unreachable = 0
        delay = self._policy.delay_s(error, self._attempt, self._random())
        if delay is None or now + delay >= self.deadline:
            raise error
        self._attempt += 1
        self._last = error
        if self._policy.on_wait is not None:
            self._policy.on_wait(error, delay)
        return delay

    def renew(self) -> None:
        """Forget the failures: the call made progress on this server."""
        self._attempt = 1
        self._unreachable = 0
        self._last = None

    def explain(self, error: DeadlineExceededError) -> None:
        """Let the error tell also how the try before ended, if there was one."""
        if (last := self._last) is not None:
            error.message += f"; the try before: {last.message}"
            error.reason = error.reason or last.reason
            error.metadata = last.metadata | error.metadata
            if error.retry_after_s is None:
                error.retry_after_s = last.retry_after_s


def out_of_time(deadline: Deadline, request_id: str) -> DeadlineExceededError:
    """The error for a caller whose time is over before there is an answer."""
    return DeadlineExceededError(
        _no_answer_within(deadline.timeout_s),
        code=grpc.StatusCode.DEADLINE_EXCEEDED,
        request_id=request_id,
    )


def _no_answer_within(timeout_s: float) -> str:
    return f"no answer within {timeout_s:g} s"


def _can_succeed_later(error: ShoalError) -> bool:
    if isinstance(error, OverloadedError):
        return error.retry_after_s is not None
    return isinstance(error, UnavailableError)
