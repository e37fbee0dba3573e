"""Calls from threads: which server, how often, and several at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub

from shoal.v1.embed_pb2_grpc import EmbedServiceStub
from shoal.v1.model_control_pb2_grpc import ModelControlServiceStub
from shoal_client.errors import ShoalError, answered_request_id, client_closed, from_rpc_error
from shoal_client.sync.stream import Answers, BulkStream
from shoal_client.sync.watch import EventCall, watch

Request = TypeVar("Request")
Response = TypeVar("Response")

if TYPE_CHECKING:
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    from shoal.v1.embed_pb2 import EmbedStreamRequest
    from shoal.v1.model_control_pb2 import Event, WatchEventsRequest
    from shoal_client.base import CallPlanner
    from shoal_client.connection import Connection, Metadata
    from shoal_client.events import EventPosition
    from shoal_client.pipeline import Pipeline
    from shoal_client.retry import Attempts, Deadline
    from shoal_client.splitting import Part, PartRequest


class Server(NamedTuple):
    """One of the servers that calls go to."""

    channel: grpc.Channel
    embed: EmbedServiceStub
    control: ModelControlServiceStub
    check_health: grpc.UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse]


# Quoted, for grpc's classes take no parameters at run time.
Method = Callable[[Server], "grpc.UnaryUnaryMultiCallable[Request, Response]"]
StreamMethod = Callable[[Server], "grpc.UnaryStreamMultiCallable[Request, Response]"]


class Cancellable(Protocol):
    """A call that can be ended."""

    def cancel(self) -> object:
        """End it."""


class CallGroup:
    """Calls of several threads that are cancelled together.

    Attributes:
        cancelled: Set once they are; calls that begin later end at once.
    """

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self._lock = threading.Lock()  # guards _futures
        self._futures: set[Cancellable] = set()

    def run(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None,
        metadata: Metadata,
    ) -> tuple[Response, grpc.Call]:
        """Make a call that `cancel` ends, like `method.with_call`."""
        future = method.future(request, timeout_s, metadata)
        with self._lock:
            self._futures.add(future)
        try:
            if self.cancelled.is_set():
                future.cancel()
            return future.result(), future
        finally:
            with self._lock:
                self._futures.discard(future)

    def cancel(self) -> None:
        """End the calls that run and those to come."""
        self.cancelled.set()
        with self._lock:
            futures = list(self._futures)
        for future in futures:
            future.cancel()


class Calls:
    """The channels of a client, one for each server, and calls over them.

    Any thread may use it.
    """

    def __init__(self, planner: CallPlanner) -> None:
        """Open the channels, which connect when they are first used."""
        self._planner = planner
        self._closed = threading.Event()
        self._servers = [_open(target, planner.connection) for target in planner.connection.targets]

    def close(self) -> None:
        """End all calls and close the connections."""
        self._closed.set()
        for server in self._servers:
            server.channel.close()

    def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        *,
        attempts: Attempts,
        request_id: str,
        group: CallGroup | None = None,
    ) -> tuple[Response, str]:
        """Make a call, again where that can help.

        Args:
            method: Picks the stub's method.
            request: Sent with every try.
            attempts: Its tries, and the deadline for all of them together.
            request_id: Sent along.
            group: Can cancel the call, which makes it slower; None: nothing can.

        Returns:
            The answer, and the request id that the server used.

        Raises:
            ShoalError: It failed for good.
        """
        planner = self._planner
        metadata = planner.metadata(request_id)
        while not self._closed.is_set():
            rpc = method(self._servers[attempts.server])
            call_with = rpc.with_call if group is None else partial(group.run, rpc)
            try:
                response, call = call_with(
                    request, attempts.remaining_s(planner.clock.now()), metadata
                )
            except grpc.RpcError as error:
                delay_s = attempts.delay_s(from_rpc_error(error, request_id), planner.clock.now())
            else:
                return response, answered_request_id(call.trailing_metadata() or (), request_id)
            planner.clock.wait(group.cancelled if group else self._closed, delay_s)
        raise client_closed()

    def unary_parts(
        self,
        method: Method[PartRequest, Response],
        parts: Sequence[Part[PartRequest]],
        *,
        deadline: Deadline,
        request_id: str,
        concurrency: int,
    ) -> list[tuple[Response, str]]:
        """Make the calls of one that was split, some at a time.

        Returns:
            What `unary` returns, in the order of the parts.

        Raises:
            ShoalError: One failed for good; the others were cancelled. Inputs
                are counted from the start of the first part.
        """

        def call(part: Part[PartRequest], group: CallGroup | None = None) -> tuple[Response, str]:
            attempts = self._planner.attempts(deadline)
            return self.unary(
                method, part.request, attempts=attempts, request_id=request_id, group=group
            )

        if len(parts) == 1:
            return [call(parts[0])]
        group = CallGroup()
        with ThreadPoolExecutor(min(concurrency, len(parts)), "shoal-part") as threads:
            try:
                futures = [threads.submit(_run_part, call, part, group) for part in parts]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                # The first error, not one of those that it is about to cause.
                for future in done:
                    future.result()
                return [future.result() for future in futures]
            except BaseException:
                group.cancel()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def stream(
        self,
        method: StreamMethod[Request, Response],
        request: Request,
        *,
        attempts: Attempts,
        request_id: str,
    ) -> Generator[Response, None, None]:
        """Make a call with many answers, once; closing the generator ends it.

        Raises:
            ShoalError: It failed.
        """
        if self._closed.is_set():
            raise client_closed()
        metadata = self._planner.metadata(request_id)
        timeout_s = attempts.remaining_s(self._planner.clock.now())
        call = method(self._servers[attempts.server])(request, timeout=timeout_s, metadata=metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            attempts.delay_s(from_rpc_error(error, request_id), self._planner.clock.now())
        finally:
            call.cancel()

    def watch_events(
        self, position: EventPosition, request_id: str
    ) -> Generator[Event, None, None]:
        """Watch a server's events, see `sync.watch`."""
        planner = self._planner
        metadata = planner.metadata(request_id)

        def open_call(server: int, request: WatchEventsRequest) -> EventCall:
            return self._servers[server].control.WatchEvents(request, metadata=metadata)

        return watch(
            open_call,
            position,
            attempts=planner.attempts(),
            clock=planner.clock,
            closed=self._closed,
            request_id=request_id,
        )

    def bulk_stream(self, pipeline: Pipeline) -> BulkStream:
        """Open a stream for a bulk job."""
        planner = self._planner
        metadata = planner.metadata(pipeline.request_id)

        def open_call(server: int, requests: Iterator[EmbedStreamRequest]) -> Answers:
            return self._servers[server].embed.EmbedStream(requests, metadata=metadata)

        return BulkStream(pipeline, open_call, planner.attempts(), planner.clock)


def _open(target: str, connection: Connection) -> Server:
    if connection.credentials is None:
        channel = grpc.insecure_channel(target, connection.options)
    else:
        channel = grpc.secure_channel(target, connection.credentials, connection.options)
    return Server(
        channel=channel,
        embed=EmbedServiceStub(channel),
        control=ModelControlServiceStub(channel),
        check_health=HealthStub(channel).Check,  # type: ignore[attr-defined]  # made at run time
    )


def _run_part(
    call: Callable[..., tuple[Response, str]], part: Part[PartRequest], group: CallGroup
) -> tuple[Response, str]:
    try:
        return call(part, group)
    except ShoalError as error:
        error.shift_index(part.offset)
        raise
