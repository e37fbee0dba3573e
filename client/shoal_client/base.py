"""What both clients are made of, apart from I/O."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal_client.coalescing import Coalescing
from shoal_client.connection import (
    DEFAULT_ADDRESS,
    Connection,
    Metadata,
    Tls,
    describe_connection,
)
from shoal_client.errors import REQUEST_ID_KEY
from shoal_client.pipeline import Pipeline
from shoal_client.ranges import invalid
from shoal_client.retry import NO_DEADLINE, Attempts, Clock, Deadline, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import grpc

    from shoal.v1.model_control_pb2 import Limits

DEFAULT_TIMEOUT_S = 60.0
# For embed_chunks and embed_iter: enough to keep batches full while answers travel.
DEFAULT_CHUNK_SIZE = 32
DEFAULT_MAX_IN_FLIGHT = 512

# gRPC takes a deadline that it can not count to for one that has passed.
_FOREVER_S = 1e9
_DEFAULT_RETRY = RetryPolicy()
_SYSTEM_CLOCK = Clock()


@dataclass(frozen=True, slots=True)
class CallPlanner:
    """Where calls go, how long they may take, and what is sent with them."""

    connection: Connection
    timeout_s: float
    retry: RetryPolicy
    clock: Clock
    _turns: Iterator[int] = field(default_factory=itertools.count)

    def deadline(self, timeout_s: float | None) -> Deadline:
        """When a call that starts now must be over; None: the client's timeout."""
        given_s = self._given_s(timeout_s)
        return Deadline(self.clock.now() + given_s, given_s)

    def attempts(self, deadline: Deadline = NO_DEADLINE) -> Attempts:
        """The tries of a new call, the first of which takes the next server in turn."""
        return Attempts(
            self.retry,
            deadline=deadline,
            servers=len(self.connection.targets),
            first_server=next(self._turns),
            random=self.clock.random,
        )

    def once(self, deadline: Deadline = NO_DEADLINE) -> Attempts:
        """The only try of a call that is not idempotent; it goes to the first server."""
        return Attempts(RetryPolicy(max_attempts=1), deadline=deadline, random=self.clock.random)

    def metadata(self, request_id: str) -> Metadata:
        """What is sent with a call."""
        return (*self.connection.metadata, (REQUEST_ID_KEY, request_id))

    def pipeline(self, timeout_s: float | None, max_in_flight: int, request_id: str) -> Pipeline:
        """The requests of a new stream; the timeout is for each of them."""
        return Pipeline(
            policy=self.retry,
            timeout_s=self._given_s(timeout_s),
            max_inputs=max_in_flight,
            random=self.clock.random,
            request_id=request_id,
        )

    def _given_s(self, timeout_s: float | None) -> float:
        given_s = self.timeout_s if timeout_s is None else timeout_s
        if math.isnan(given_s):
            raise invalid("timeout_s", "nan is not a number of seconds")
        return given_s if given_s < _FOREVER_S else math.inf


class ClientBase:
    """What a client was told when it was made."""

    def __init__(
        self,
        addresses: str | Iterable[str] = DEFAULT_ADDRESS,
        *,
        tls: bool | Tls | grpc.ChannelCredentials = False,
        token: str = "",
        metadata: Mapping[str, str | bytes] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy = _DEFAULT_RETRY,
        concurrency: int = 8,
        coalesce: bool | Coalescing = False,
        clock: Clock = _SYSTEM_CLOCK,
    ) -> None:
        """Describe the connection; the first call opens it.

        Args:
            addresses: `HOST:PORT` of each server, as a list or comma-separated.
                Calls take them in turn, and go to the next one when one can not
                be reached. A name that resolves to several servers uses all.
            tls: True verifies the server with the roots that gRPC brings; see
                `Tls` for others and for client certificates. gRPC credentials
                are used as they are.
            token: Sent as `authorization: Bearer …`; refused where it would
                travel to another machine in plaintext.
            metadata: Sent with every call.
            timeout_s: Seconds for a call that names none, retries included;
                `math.inf` for no limit.
            retry: When calls are tried again; `RetryPolicy(max_attempts=1)`
                turns that off.
            concurrency: Requests of one large call that are in flight together.
            coalesce: Whether concurrent calls of `embed` and `embed_tokens` with
                equal options share requests: cheaper for many callers with few
                texts each. One caller's bad input or lateness is not another's.
                A call with a `request_id` of its own goes by itself. See
                `Coalescing` for how.
            clock: Time and chance, for tests.

        Raises:
            ValueError: An address or a number makes no sense, or the token would
                travel in plaintext.
        """
        if concurrency < 1 or retry.max_attempts < 1 or not timeout_s > 0:
            raise ValueError("timeout_s, concurrency and retry.max_attempts must be above 0")
        connection = describe_connection(addresses, tls=tls, token=token, metadata=metadata or {})
        self._planner = CallPlanner(connection, timeout_s, retry, clock)
        self._concurrency = concurrency
        self._coalescing = Coalescing() if coalesce is True else coalesce or None
        self._limits: Limits | None = None
        self._open()

    def _open(self) -> None:
        """Make what the client does its I/O with."""
        raise NotImplementedError


def bounded_chunk_size(chunk_size: int, max_in_flight: int) -> int:
    """Texts in one request of a bulk job, such that one request may be in flight.

    Raises:
        InvalidArgumentError: Either number is below 1.
    """
    for name, value in (("chunk_size", chunk_size), ("max_in_flight", max_in_flight)):
        if value < 1:
            raise invalid(name, f"{value} is not at least 1")
    return min(chunk_size, max_in_flight)
