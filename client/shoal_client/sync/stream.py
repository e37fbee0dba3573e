"""One bulk job over EmbedStream, for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol, Self

import grpc

from shoal.v1.embed_pb2 import EmbedRequest, EmbedStreamRequest, EmbedStreamResponse
from shoal_client.errors import ShoalError, UnavailableError, from_rpc_error, stream_ended

if TYPE_CHECKING:
    from types import TracebackType

    from shoal_client.pipeline import Pipeline
    from shoal_client.results import Embeddings
    from shoal_client.retry import Attempts, Clock

# For the server to end a stream of which everything was answered.
_FINISH_S = 1.0


class Answers(Protocol):
    """The answers of a call, which can be ended."""

    def __iter__(self) -> Iterator[EmbedStreamResponse]: ...

    def cancel(self) -> object:
        """End the call."""


OpenCall = Callable[[int, Iterator[EmbedStreamRequest]], Answers]


class StreamCall:
    """One EmbedStream call. Sending never blocks; a thread of its own reads."""

    def __init__(self, open_call: OpenCall, server: int, request_id: str) -> None:
        self._request_id = request_id
        self._outbox: SimpleQueue[EmbedStreamRequest | None] = SimpleQueue()
        self._inbox: SimpleQueue[EmbedStreamResponse | ShoalError] = SimpleQueue()
        self._call = open_call(server, iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, name="shoal-stream", daemon=True)
        self._reader.start()

    def send(self, request: EmbedStreamRequest) -> None:
        """Hand a request to gRPC, whose flow control holds it back when need be."""
        self._outbox.put(request)

    def receive(self, timeout_s: float | None) -> EmbedStreamResponse | None:
        """The next answer; None when there was none in time.

        Raises:
            ShoalError: The call ended.
        """
        try:
            answer = self._inbox.get(timeout=timeout_s)
        except Empty:
            return None
        if isinstance(answer, ShoalError):
            raise answer
        return answer

    def finish(self) -> None:
        """End the call as a success, everything being answered."""
        self._outbox.put(None)
        self._reader.join(_FINISH_S)
        self.cancel()

    def cancel(self) -> None:
        """End the call, whatever is still unanswered."""
        self._call.cancel()
        self._outbox.put(None)

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._inbox.put(answer)
        except grpc.RpcError as error:
            self._inbox.put(from_rpc_error(error, self._request_id))
        else:
            self._inbox.put(stream_ended())


class BulkStream:
    """A pipeline and the call that serves it, replaced when its server goes away.

    Used by one thread, as a context manager.
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

    def receive(self) -> list[Embeddings]:
        """Wait for an answer; returns the results that are now next in order, if any.

        Raises:
            ShoalError: A request, or the stream, failed for good.
        """
        try:
            self._exchange()
        except UnavailableError as error:
            self._reopen(error)
        return self._pipeline.take_ready()

    def _exchange(self) -> None:
        now = self._clock.now()
        for request in self._pipeline.due(now):
            self._call.send(request)
        answer = self._call.receive(self._pipeline.wait_s(now))
        if answer is None:
            self._pipeline.check_silence()
        else:
            self._pipeline.resolve(answer, self._clock.now())
            self._attempts.renew()

    def _reopen(self, error: UnavailableError) -> None:
        delay_s = self._attempts.delay_s(error, self._clock.now())
        self._call.cancel()
        self._clock.wait(threading.Event(), delay_s)
        self._call = self._open()
        for request in self._pipeline.unanswered():
            self._call.send(request)

    def _open(self) -> StreamCall:
        return StreamCall(self._open_call, self._attempts.server, self._pipeline.request_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._call.finish()
        else:
            self._call.cancel()
