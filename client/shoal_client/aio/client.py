"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Self, Unpack

from shoal.v1.embed_pb2 import EmbedRequest, TokenizedText, TokenizeRequest
from shoal_client.aio.calls import Method, Response
from shoal_client.aio.coalescing import AsyncCoalescer
from shoal_client.aio.control import AsyncControlClient
from shoal_client.base import DEFAULT_CHUNK_SIZE, DEFAULT_MAX_IN_FLIGHT, bounded_chunk_size
from shoal_client.requests import (
    EmbedOptions,
    iterable_of_texts,
    new_embed_request,
    new_request_id,
)
from shoal_client.results import Embeddings, Vectors, decode, join
from shoal_client.splitting import (
    Part,
    PartLimits,
    PartRequest,
    TextChunker,
    strays,
    text_parts,
    token_parts,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
    from types import TracebackType

    from shoal_client.pipeline import Pipeline
    from shoal_client.retry import Deadline


class AsyncClient(AsyncControlClient):
    """`Client` for asyncio, method by method; tasks of one event loop may share it.

        async with AsyncClient("127.0.0.1:50051") as client:
            vectors = (await client.embed(["one text", "another"])).vectors

    Cancelling a task cancels its call. The client may be made outside of the
    event loop, and belongs to the loop of its first call.
    """

    async def embed(
        self,
        texts: Iterable[str],
        *,
        timeout_s: float | None = None,
        request_id: str = "",
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """As `Client.embed`."""
        request = new_embed_request(**options)
        deadline = self._planner.deadline(timeout_s)
        limits = PartLimits.of(await self._server_limits(deadline), request)
        return await self._embed(text_parts(texts, request, limits), limits, deadline, request_id)

    async def embed_tokens(
        self,
        tokens: Iterable[Sequence[int]],
        *,
        timeout_s: float | None = None,
        request_id: str = "",
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """As `Client.embed_tokens`."""
        request = new_embed_request(**options)
        deadline = self._planner.deadline(timeout_s)
        limits = PartLimits.of(await self._server_limits(deadline), request)
        return await self._embed(token_parts(tokens, request, limits), limits, deadline, request_id)

    def embed_iter(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout_s: float | None = None,
        request_id: str = "",
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[Vectors, None]:
        """As `Client.embed_iter`, of an iterable or an asynchronous iterable."""
        chunks = self.embed_chunks(
            texts,
            chunk_size=chunk_size,
            max_in_flight=max_in_flight,
            timeout_s=timeout_s,
            request_id=request_id,
            **options,
        )
        return _rows(chunks)

    def embed_chunks(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout_s: float | None = None,
        request_id: str = "",
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[Embeddings, None]:
        """As `Client.embed_chunks`, of an iterable or an asynchronous iterable."""
        request = new_embed_request(**options)
        pipeline = self._planner.pipeline(timeout_s, max_in_flight, request_id or new_request_id())
        chunk_size = bounded_chunk_size(chunk_size, max_in_flight)
        return self._chunks(iterable_of_texts(texts), request, chunk_size, pipeline)

    async def tokenize(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        truncate: bool | None = None,
        prompt_name: str = "",
        include_strings: bool = False,
        routing_key: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> list[TokenizedText]:
        """As `Client.tokenize`."""
        request = TokenizeRequest(
            model=model,
            truncate=truncate,
            prompt_name=prompt_name,
            include_strings=include_strings,
            routing_key=routing_key,
        )
        deadline = self._planner.deadline(timeout_s)
        parts = text_parts(
            texts, request, PartLimits.of(await self._server_limits(deadline), request)
        )
        answers = await self._run(lambda server: server.embed.Tokenize, parts, deadline, request_id)
        return [result for response, _ in answers for result in response.results]

    async def close(self) -> None:
        """As `Client.close`."""
        if self._coalescer is not None:
            await self._coalescer.close()
        await self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _open(self) -> None:
        super()._open()
        self._coalescer: AsyncCoalescer | None = None
        if self._coalescing is not None:
            self._coalescer = AsyncCoalescer(self._coalescing, self._calls, self._planner)

    async def _run(
        self,
        method: Method[PartRequest, Response],
        parts: Sequence[Part[PartRequest]],
        deadline: Deadline,
        request_id: str,
    ) -> list[tuple[Response, str]]:
        return await self._calls.unary_parts(
            method,
            parts,
            deadline=deadline,
            request_id=request_id or new_request_id(),
            concurrency=self._concurrency,
        )

    async def _embed(
        self,
        parts: Sequence[Part[EmbedRequest]],
        limits: PartLimits,
        deadline: Deadline,
        request_id: str,
    ) -> Embeddings:
        coalescer = self._coalescer
        if coalescer is not None and not request_id and len(parts) == 1:
            request = parts[0].request
            if coalescer.takes(request):
                return await coalescer.embed(request, limits, deadline)
        answers = await self._run(lambda server: server.embed.Embed, parts, deadline, request_id)
        if again := strays(parts, answers):
            redone = await self._run(
                lambda server: server.embed.Embed,
                [parts[index] for index in again],
                deadline,
                request_id,
            )
            for index, answer in zip(again, redone, strict=True):
                answers[index] = answer
        return join([decode(response, answered_id) for response, answered_id in answers])

    async def _chunks(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        template: EmbedRequest,
        chunk_size: int,
        pipeline: Pipeline,
    ) -> AsyncGenerator[Embeddings, None]:
        limits = PartLimits.of(await self._server_limits(self._planner.deadline(None)), template)
        async with self._calls.bulk_stream(pipeline) as stream:
            async for request in _requests(texts, TextChunker(template, limits, chunk_size)):
                stream.submit(request)
                while not pipeline.has_room(chunk_size):
                    for chunk in await stream.receive():
                        yield chunk
            while not pipeline.is_idle:
                for chunk in await stream.receive():
                    yield chunk


async def _requests(
    texts: Iterable[str] | AsyncIterable[str], chunker: TextChunker
) -> AsyncIterator[EmbedRequest]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            if (request := chunker.add(text)) is not None:
                yield request
    else:
        for text in texts:
            if (request := chunker.add(text)) is not None:
                yield request
    if (last := chunker.flush()) is not None:
        yield last


async def _rows(chunks: AsyncGenerator[Embeddings, None]) -> AsyncGenerator[Vectors, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            for row in chunk.vectors:
                yield row
