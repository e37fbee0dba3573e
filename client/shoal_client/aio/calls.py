"""Calls from tasks: which server, how often, and several at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import grpc
import grpc.aio
from grpc_health.v1.health_pb2_grpc import HealthStub

from shoal.v1.embed_pb2_grpc import EmbedServiceStub
from shoal.v1.model_control_pb2_grpc import ModelControlServiceStub
from shoal_client.aio.stream import Answers, AsyncBulkStream
from shoal_client.aio.watch import EventCall, watch
from shoal_client.errors import ShoalError, answered_request_id, client_closed, from_rpc_error

Request = TypeVar("Request")
Response = TypeVar("Response")

if TYPE_CHECKING:
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    from shoal.v1.embed_pb2 import EmbedStreamRequest
    from shoal.v1.embed_pb2_grpc import EmbedServiceAsyncStub
    from shoal.v1.model_control_pb2 import Event, WatchEventsRequest
    from shoal.v1.model_control_pb2_grpc import ModelControlServiceAsyncStub
    from shoal_client.base import CallPlanner
    from shoal_client.connection import Connection
    from shoal_client.events import EventPosition
    from shoal_client.pipeline import Pipeline
    from shoal_client.retry import Attempts, Deadline
    from shoal_client.splitting import Part, PartRequest


class AsyncServer(NamedTuple):
    """One of the servers that calls go to."""

    channel: grpc.aio.Channel
    embed: EmbedServiceAsyncStub
    control: ModelControlServiceAsyncStub
    check_health: grpc.aio.UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse]


# Quoted, for grpc's classes take no parameters at run time.
Method = Callable[[AsyncServer], "grpc.aio.UnaryUnaryMultiCallable[Request, Response]"]
StreamMethod = Callable[[AsyncServer], "grpc.aio.UnaryStreamMultiCallable[Request, Response]"]


class AsyncCalls:
    """The channels of a client, one for each server, and calls over them.

    Belongs to the event loop of its first call.
    """

    def __init__(self, planner: CallPlanner) -> None:
        self._planner = planner
        self._closed = False

    @cached_property
    def _servers(self) -> Sequence[AsyncServer]:
        # Not before the first call: a channel binds itself to the running loop.
        return [
            _open(target, self._planner.connection) for target in self._planner.connection.targets
        ]

    async def close(self) -> None:
        """End all calls and close the connections."""
        self._closed = True
        for server in self._servers:
            await server.channel.close()

    async def unary(
        self,
        method: Method[Request, Response],
        request: Request,
        *,
        attempts: Attempts,
        request_id: str,
    ) -> tuple[Response, str]:
        """Make a call, again where that can help.

        Args:
            method: Picks the stub's method.
            request: Sent with every try.
            attempts: Its tries, and the deadline for all of them together.
            request_id: Sent along.

        Returns:
            The answer, and the request id that the server used.

        Raises:
            ShoalError: It failed for good.
        """
        planner = self._planner
        metadata = planner.metadata(request_id)
        while not self._closed:
            rpc = method(self._servers[attempts.server])
            timeout_s = attempts.remaining_s(planner.clock.now())
            try:
                call = rpc(request, timeout=timeout_s, metadata=metadata)
                response = await call
            except grpc.RpcError as error:
                delay_s = attempts.delay_s(from_rpc_error(error, request_id), planner.clock.now())
            else:
                return response, answered_request_id(await call.trailing_metadata(), request_id)
            await planner.clock.sleep(delay_s)
        raise client_closed()

    async def unary_parts(
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

        def call(part: Part[PartRequest]) -> Awaitable[tuple[Response, str]]:
            attempts = self._planner.attempts(deadline)
            return self.unary(method, part.request, attempts=attempts, request_id=request_id)

        if len(parts) == 1:
            return [await call(parts[0])]
        permits = asyncio.Semaphore(concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_run_part(call, part, permits)) for part in parts]
        except ExceptionGroup as failed:  # the first; the group cancelled the others
            first = failed.exceptions[0]
            raise first from first.__cause__
        return [task.result() for task in tasks]

    async def stream(
        self,
        method: StreamMethod[Request, Response],
        request: Request,
        *,
        attempts: Attempts,
        request_id: str,
    ) -> AsyncGenerator[Response, None]:
        """Make a call with many answers, once; closing the generator ends it.

        Raises:
            ShoalError: It failed.
        """
        if self._closed:
            raise client_closed()
        metadata = self._planner.metadata(request_id)
        timeout_s = attempts.remaining_s(self._planner.clock.now())
        call = method(self._servers[attempts.server])(request, timeout=timeout_s, metadata=metadata)
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            attempts.delay_s(from_rpc_error(error, request_id), self._planner.clock.now())
        finally:
            call.cancel()

    def watch_events(self, position: EventPosition, request_id: str) -> AsyncGenerator[Event, None]:
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
            request_id=request_id,
        )

    def bulk_stream(self, pipeline: Pipeline) -> AsyncBulkStream:
        """Open a stream for a bulk job."""
        planner = self._planner
        metadata = planner.metadata(pipeline.request_id)

        def open_call(server: int, requests: AsyncIterator[EmbedStreamRequest]) -> Answers:
            return self._servers[server].embed.EmbedStream(requests, metadata=metadata)

        return AsyncBulkStream(pipeline, open_call, planner.attempts(), planner.clock)


def _open(target: str, connection: Connection) -> AsyncServer:
    if connection.credentials is None:
        channel = grpc.aio.insecure_channel(target, connection.options)
    else:
        channel = grpc.aio.secure_channel(target, connection.credentials, connection.options)
    return AsyncServer(
        channel=channel,
        embed=EmbedServiceStub(channel),
        control=ModelControlServiceStub(channel),
        check_health=HealthStub(channel).Check,  # type: ignore[attr-defined]  # made at run time
    )


async def _run_part(
    call: Callable[[Part[PartRequest]], Awaitable[tuple[Response, str]]],
    part: Part[PartRequest],
    permits: asyncio.Semaphore,
) -> tuple[Response, str]:
    async with permits:
        try:
            return await call(part)
        except ShoalError as error:
            error.shift_index(part.offset)
            raise
