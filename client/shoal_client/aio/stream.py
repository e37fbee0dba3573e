"""One bulk job over EmbedStream, for asyncio. The twin of `sync.stream`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import grpc
import grpc.aio

from shoal.v1.embed_pb2 import EmbedRequest, EmbedStreamRequest, EmbedStreamResponse
from shoal_client.errors import ShoalError, UnavailableError, from_rpc_error, stream_ended

if TYPE_CHECKING:
    from types import TracebackType

    from shoal_client.pipeline import Pipeline
    from shoal_client.results import Embeddings
    from shoal_client.retry import Attempts, Clock

T = TypeVar("T")

# For the server to end a stream of which everything was answered.
_FINISH_S = 1.0
_LOST_STATUS = "Internal error from Core"


class Answers(Protocol):
    """The answers of a call, which can be ended."""

    def __aiter__(self) -> AsyncIterator[EmbedStreamResponse]: ...

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have a function called when the status of the call is known."""

    def cancel(self) -> object:
        """End the call."""


OpenCall = Callable[[int, AsyncIterator[EmbedStreamRequest]], Answers]


class AsyncStreamCall:
    """One EmbedStream call. Sending never waits; a task of its own reads."""

    def __init__(self, open_call: OpenCall, server: int, request_id: str) -> None:
        self._request_id = request_id
        self._outbox: asyncio.Queue[EmbedStreamRequest | None] = asyncio.Queue()
        self._inbox: asyncio.Queue[EmbedStreamResponse | ShoalError] = asyncio.Queue()
        self._first_status: grpc.RpcError | None = None
        self._call = open_call(server, self._requests())
        self._call.add_done_callback(self._remember_status)
        self._reader = asyncio.create_task(self._read(), name="shoal-stream")

    def send(self, request: EmbedStreamRequest) -> None:
        """Hand a request to gRPC, whose flow control holds it back when need be."""
        self._outbox.put_nowait(request)

    async def receive(self, timeout_s: float | None) -> EmbedStreamResponse | None:
        """The next answer; None when there was none in time.

        Raises:
            ShoalError: The call ended.
        """
        try:
            answer = self._inbox.get_nowait()  # the timer costs more than the rest
        except asyncio.QueueEmpty:
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await self._inbox.get()
            except TimeoutError:
                return None
        if isinstance(answer, ShoalError):
            raise answer
        return answer

    async def finish(self) -> None:
        """End the call as a success, everything being answered."""
        self._outbox.put_nowait(None)
        await asyncio.wait({self._reader}, timeout=_FINISH_S)
        await self.cancel()

    async def cancel(self) -> None:
        """End the call, whatever is still unanswered."""
        self._outbox.put_nowait(None)
        self._call.cancel()
        self._reader.cancel()
        await asyncio.wait({self._reader})

    async def _requests(self) -> AsyncIterator[EmbedStreamRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for answer in self._call:
                self._inbox.put_nowait(answer)
        except grpc.RpcError as error:
            self._inbox.put_nowait(self._typed(error))
        else:
            self._inbox.put_nowait(stream_ended())

    def _typed(self, error: grpc.RpcError) -> ShoalError:
        # A write that fails because the server ended the call makes grpc.aio set an
        # INTERNAL of its own (grpc/grpc#36066), before or after the server's status.
        for status in (error, self._first_status):
            if status is not None and status.details() != _LOST_STATUS:
                return from_rpc_error(status, self._request_id)
        return stream_ended()

    def _remember_status(self, call: grpc.aio.Call) -> None:
        self._first_status = grpc.aio.AioRpcError(
            _returned(call.code()),
            trailing_metadata=_returned(call.trailing_metadata()),
            details=_returned(call.details()),
        )


def _returned(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("the coroutine waits")


class AsyncBulkStream:
    """A pipeline and the call that serves it, replaced when its server goes away.

    Used by one task, as a context manager.
    """

    def __init__(
        self, pipeline: Pipeline, open_call: OpenCall, attempts: Attempts, clock: Clock
    ) -> None:
        """Open the first call.

        Args:
            pipeline: Keeps the order and the retries.
            open_call: Starts the RPC on the server of that index.
            attempts: The tries at a stream, renewed by each answer.
            clock: For the waits.
        """
        self._pipeline = pipeline
        self._open_call = open_call
        self._attempts = attempts
        self._clock = clock
        self._call = self._open()

    def submit(self, request: EmbedRequest) -> None:
        """Send one more request."""
        self._call.send(self._pipeline.submit(request, self._clock.now()))

    async def receive(self) -> list[Embeddings]:
        """Wait for an answer; returns the results that are now next in order, if any.

        Raises:
            ShoalError: A request, or the stream, failed for good.
        """
        try:
            await self._exchange()
        except UnavailableError as error:
            await self._reopen(error)
        return self._pipeline.take_ready()

    async def _exchange(self) -> None:
        now = self._clock.now()
        for request in self._pipeline.due(now):
            self._call.send(request)
        answer = await self._call.receive(self._pipeline.wait_s(now))
        if answer is None:
            self._pipeline.check_silence()
        else:
            self._pipeline.resolve(answer, self._clock.now())
            self._attempts.renew()

    async def _reopen(self, error: UnavailableError) -> None:
        delay_s = self._attempts.delay_s(error, self._clock.now())
        await self._call.cancel()
        await self._clock.sleep(delay_s)
        self._call = self._open()
        for request in self._pipeline.unanswered():
            self._call.send(request)

    def _open(self) -> AsyncStreamCall:
        return AsyncStreamCall(self._open_call, self._attempts.server, self._pipeline.request_id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self._call.finish()
        else:
            await self._call.cancel()
