"""EmbedService: between its messages and the embedder."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import grpc
import structlog

from shoal.v1 import embed_pb2 as pb
from shoal_server.api.rpc import Call, Context, Rpcs, as_shoal_error, check_size, parse
from shoal_server.api.status import code_of, rich_status
from shoal_server.core import Priority, VectorEncoding
from shoal_server.embed_request import EmbedRequest
from shoal_server.embedder import Embedder, EmbedResult
from shoal_server.errors import FailedPrecondition, InvalidInput, Unavailable
from shoal_server.registry.prepared import ModelVersion
from shoal_server.tallies import Counter

log = structlog.get_logger(__name__)

SERVICE = "shoal.v1.EmbedService"
T = TypeVar("T")
_MAX_ID_BYTES = 128

_ENCODINGS = {
    pb.VECTOR_ENCODING_UNSPECIFIED: VectorEncoding.FLOAT32,
    pb.VECTOR_ENCODING_FLOAT32: VectorEncoding.FLOAT32,
    pb.VECTOR_ENCODING_FLOAT16: VectorEncoding.FLOAT16,
    pb.VECTOR_ENCODING_INT8: VectorEncoding.INT8,
    pb.VECTOR_ENCODING_UBINARY: VectorEncoding.UBINARY,
}
_ENCODING_NUMBERS = {
    VectorEncoding.FLOAT32: pb.VECTOR_ENCODING_FLOAT32,
    VectorEncoding.FLOAT16: pb.VECTOR_ENCODING_FLOAT16,
    VectorEncoding.INT8: pb.VECTOR_ENCODING_INT8,
    VectorEncoding.UBINARY: pb.VECTOR_ENCODING_UBINARY,
}
_PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    pb.PRIORITY_LOW: Priority.LOW,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_HIGH: Priority.HIGH,
}


class EmbedServicer:
    """Answers `shoal.v1.EmbedService`."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        max_stream_requests: int,
        max_request_bytes: int,
        draining: asyncio.Event,
        default_model: str,
        stream_requests: Counter,
    ) -> None:
        """Wire it.

        Args:
            embedder: Does the work.
            max_stream_requests: In flight on one stream.
            max_request_bytes: Larger ones are refused before they are parsed.
            draining: Set when the server is going away.
            default_model: What a request that names no model gets; for the log.
            stream_requests: Counts answers on streams, by code.
        """
        self._embedder = embedder
        self._default_model = default_model
        self._stream_requests = stream_requests
        self._max_request_bytes = max_request_bytes
        self._max_stream_requests = max_stream_requests
        self._draining = draining

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """The service's methods for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Embed": rpcs.unary("Embed", pb.EmbedRequest, self.embed),
                "EmbedStream": rpcs.stream("EmbedStream", self.embed_stream),
                "Tokenize": rpcs.unary("Tokenize", pb.TokenizeRequest, self.tokenize),
            },
        )

    async def embed(self, message: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """One vector for each input."""
        call.model = message.model or self._default_model
        request = _read_request(message, call.size_bytes, call.deadline_s, call.caller)
        result = await self._embedder.embed(request)
        _note_deprecation(result.version, call)
        return _write_result(result, time.monotonic() - call.began_s)

    async def tokenize(self, message: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        """The token ids of each text."""
        call.model = message.model or self._default_model
        request = EmbedRequest(
            model=message.model,
            size_bytes=call.size_bytes,
            texts=message.texts,
            truncate=message.truncate if message.HasField("truncate") else True,
            prompt_name=message.prompt_name,
            routing_key=message.routing_key,
            deadline_s=call.deadline_s,
            caller=call.caller,
        )
        result = await self._embedder.tokenize(request, include_strings=message.include_strings)
        _note_deprecation(result.version, call)
        strings = result.strings or [[] for _ in result.encodings]
        return pb.TokenizeResponse(
            model=result.version.key.name,
            version=result.version.key.version,
            results=[
                pb.TokenizedText(ids=each.ids, strings=words, truncated=each.truncated)
                for each, words in zip(result.encodings, strings, strict=True)
            ],
        )

    async def embed_stream(self, raw: AsyncIterator[bytes], context: Context, call: Call) -> None:
        """Answer requests as they get done, at most so many of them at once."""
        stream = _Stream(
            self._embedder,
            context,
            call,
            self._max_stream_requests,
            self._max_request_bytes,
            self._stream_requests,
        )
        reading = asyncio.create_task(stream.read(raw))
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                await stream.finish()
            else:
                # First no more is read: a sender without end must not hold up the rest.
                reading.cancel()
                await stream.finish()
                raise Unavailable("the server is shutting down; what was read is answered")
        finally:
            draining.cancel()
            reading.cancel()
            stream.cancel()


class _Stream:
    """One EmbedStream: a reader, and a task for each request in flight."""

    def __init__(
        self,
        embedder: Embedder,
        context: Context,
        call: Call,
        max_requests: int,
        max_request_bytes: int,
        answers: Counter,
    ) -> None:
        self._embedder = embedder
        self._answers = answers
        self._max_request_bytes = max_request_bytes
        self._context = context
        self._call = call
        self._room = asyncio.Semaphore(max_requests)
        # gRPC takes one message at a time.
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, raw: AsyncIterator[bytes]) -> None:
        """Take requests off the wire for as long as there is room to work on them."""
        await self._room.acquire()
        async for message in raw:
            task = asyncio.create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._answered)
            await self._room.acquire()

    async def finish(self) -> None:
        """Return when everything that was read is answered."""
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks)
            for task in done:
                task.result()

    def cancel(self) -> None:
        """The caller is gone: nobody wants the answers."""
        for task in self._tasks:
            task.cancel()

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()
        if not task.cancelled() and task.exception() is not None:
            # Writing failed, so the connection is gone, which the reader sees too.
            log.debug("stream_write_failed", error=repr(task.exception()))

    async def _answer(self, raw: bytes) -> None:
        answer = pb.EmbedStreamResponse()
        grpc_code = grpc.StatusCode.OK
        try:
            # Whatever else is wrong with it, the caller should know which one it was.
            answer.id = _peek_id(raw)
            check_size(raw, self._max_request_bytes)
            message = parse(pb.EmbedStreamRequest, raw)
            answer.id = _checked_id(message.id)
            began_s = time.monotonic()
            request = self._request(message, len(raw), began_s)
            result = await self._embedder.embed(request)
            _note_deprecation(result.version, self._call)
            seconds = time.monotonic() - began_s
            answer.response.CopyFrom(_write_result(result, seconds))
        except Exception as error:
            shoal_error = as_shoal_error(error)
            grpc_code = code_of(shoal_error)
            log.info("stream_request_failed", id=answer.id, reason=shoal_error.reason,
                     error=shoal_error.message)  # fmt: skip
            answer.error.CopyFrom(rich_status(shoal_error))
        self._answers.labels(grpc_code.name).inc()
        async with self._writing:
            await self._context.write(answer.SerializeToString())

    def _request(
        self, message: pb.EmbedStreamRequest, size_bytes: int, now_s: float
    ) -> EmbedRequest:
        deadline_s = self._call.deadline_s
        if message.HasField("timeout_ms"):
            own_s = now_s + message.timeout_ms / 1000
            deadline_s = own_s if deadline_s is None else min(deadline_s, own_s)
        return _read_request(message.request, size_bytes, deadline_s, self._call.caller)


def _peek_id(raw: bytes) -> str:
    """The id of an EmbedStreamRequest that starts with it, as serialisers write it.

    Field 1, length-delimited: tag 0x0a, one byte of length below 128, UTF-8.
    """
    if len(raw) < 2 or raw[0] != 0x0A or raw[1] >= _MAX_ID_BYTES:
        return ""
    try:
        return raw[2 : 2 + raw[1]].decode()
    except UnicodeDecodeError:
        return ""


def _checked_id(identifier: str) -> str:
    size_bytes = len(identifier.encode())
    if size_bytes > _MAX_ID_BYTES:
        raise InvalidInput("id", f"{size_bytes} bytes, at most {_MAX_ID_BYTES}")
    return identifier


def _read_request(
    message: pb.EmbedRequest, size_bytes: int, deadline_s: float | None, caller: str = ""
) -> EmbedRequest:
    kinds = [name for name in ("texts", "tokens", "images") if getattr(message, name)]
    if len(kinds) > 1:
        raise InvalidInput(kinds[1], f"{' and '.join(kinds)} are set; set one of them")
    if message.images:
        raise FailedPrecondition("images: no model of this server takes images")
    return EmbedRequest(
        model=message.model,
        size_bytes=size_bytes,
        texts=message.texts,
        tokens=_TokenRows(message.tokens),
        normalize=message.normalize if message.HasField("normalize") else None,
        dimensions=message.dimensions if message.HasField("dimensions") else None,
        encoding=_known(_ENCODINGS, message.encoding, "encoding"),
        truncate=message.truncate if message.HasField("truncate") else True,
        prompt_name=message.prompt_name,
        priority=_known(_PRIORITIES, message.priority, "priority"),
        routing_key=message.routing_key,
        keep_alive_s=_read_keep_alive(message) if message.HasField("keep_alive_s") else None,
        deadline_s=deadline_s,
        caller=caller,
    )


def _read_keep_alive(message: pb.EmbedRequest) -> float:
    if not math.isfinite(message.keep_alive_s):
        raise InvalidInput("keep_alive_s", f"{message.keep_alive_s} is not a finite number")
    return message.keep_alive_s


class _TokenRows(Sequence[Sequence[int]]):
    """The ids of each input, read from the message where they are asked for.

    A list of them, made before they are counted, costs a caller two bytes an input
    and the server 600 bytes and microseconds.
    """

    def __init__(self, tokens: Sequence[pb.TokenIds]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, index: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sequence[int]]: ...
    def __getitem__(self, index: int | slice) -> Sequence[int] | Sequence[Sequence[int]]:
        if isinstance(index, slice):
            return [each.ids for each in self._tokens[index]]
        return self._tokens[index].ids


def _known(table: Mapping[Any, T], number: int, field: str) -> T:
    try:
        return table[number]
    except KeyError:
        raise InvalidInput(
            field, f"{number} is not a value of its enum; the values are {sorted(table)}"
        ) from None


def _note_deprecation(version: ModelVersion, call: Call) -> None:
    if version.deprecation is not None:
        call.deprecated[version.deprecation.facts(version.key)] = None


def _write_result(result: EmbedResult, seconds: float) -> pb.EmbedResponse:
    timings = result.timings
    items = timings.items
    deprecation = result.version.deprecation
    return pb.EmbedResponse(
        model=result.version.key.name,
        version=result.version.key.version,
        vectors=result.rows.vectors,
        dimensions=result.dimensions,
        encoding=_ENCODING_NUMBERS[result.encoding],
        token_counts=result.token_counts,
        truncated=result.truncated,
        scales=() if result.rows.scales is None else result.rows.scales.tolist(),
        timings=pb.Timings(
            total_us=_us(seconds),
            queue_us=_us(items.queue_s) if items else 0,
            tokenize_us=_us(timings.tokenize_s),
            inference_us=_us(items.inference_s) if items else 0,
            batch_size=items.batch_items if items else 0,
            load_us=_us(timings.load_s),
        ),
        deprecation=deprecation.notice(result.version.key) if deprecation else "",
    )


def _us(seconds: float) -> int:
    return max(0, int(seconds * 1e6))
