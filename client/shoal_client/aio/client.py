"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Self, Unpack

from grpc_health.v1.health_pb2 import HealthCheckRequest

from shoal.v1.embed_pb2 import EmbedRequest, TokenizedText, TokenizeRequest
from shoal.v1.model_control_pb2 import (
    GetModelRequest,
    GetServerInfoRequest,
    GetServerInfoResponse,
    Limits,
    ListModelsRequest,
    LoadModelRequest,
    ModelInfo,
)
from shoal_client.aio.calls import AsyncCalls, Method, Request, Response
from shoal_client.base import (
    DEFAULT_CHUNK_SIZE,
    DEFAULT_MAX_IN_FLIGHT,
    ClientBase,
    bounded_chunk_size,
    new_request_id,
)
from shoal_client.errors import ModelNotFoundError, PermissionDeniedError, UnimplementedError
from shoal_client.requests import (
    EmbedOptions,
    iterable_of_texts,
    new_embed_request,
    new_unload_request,
)
from shoal_client.results import Embeddings, HealthStatus, Vectors, decode, health_status, join
from shoal_client.splitting import (
    DEFAULT_LIMITS,
    Part,
    PartLimits,
    PartRequest,
    TextChunker,
    text_parts,
    token_parts,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
    from types import TracebackType

    from shoal_client.pipeline import Pipeline
    from shoal_client.retry import Deadline


class AsyncClient(ClientBase):
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
        return await self._embed(text_parts(texts, request, limits), deadline, request_id)

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
        return await self._embed(token_parts(tokens, request, limits), deadline, request_id)

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
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> list[TokenizedText]:
        """As `Client.tokenize`."""
        request = TokenizeRequest(
            model=model,
            truncate=truncate,
            prompt_name=prompt_name,
            include_strings=include_strings,
        )
        deadline = self._planner.deadline(timeout_s)
        parts = text_parts(
            texts, request, PartLimits.of(await self._server_limits(deadline), request)
        )
        answers = await self._run(lambda server: server.embed.Tokenize, parts, deadline, request_id)
        return [result for response, _ in answers for result in response.results]

    async def list_models(
        self, *, timeout_s: float | None = None, request_id: str = ""
    ) -> list[ModelInfo]:
        """As `Client.list_models`."""
        response = await self._call(
            lambda server: server.control.ListModels, ListModelsRequest(), timeout_s, request_id
        )
        return list(response.models)

    async def get_model(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> ModelInfo:
        """As `Client.get_model`."""
        request = GetModelRequest(model=model)
        response = await self._call(
            lambda server: server.control.GetModel, request, timeout_s, request_id
        )
        return response.model

    async def load_model(
        self,
        model: str = "",
        *,
        pin: bool | None = None,
        device: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """As `Client.load_model`."""
        request = LoadModelRequest(model=model, pin=pin, device=device)
        response = await self._call(
            lambda server: server.control.LoadModel, request, timeout_s, request_id
        )
        return response.model

    async def unload_model(
        self,
        model: str = "",
        *,
        force_after_s: float | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """As `Client.unload_model`."""
        request = new_unload_request(model, force_after_s)
        response = await self._call(
            lambda server: server.control.UnloadModel, request, timeout_s, request_id
        )
        return response.model

    async def server_info(
        self, *, timeout_s: float | None = None, request_id: str = ""
    ) -> GetServerInfoResponse:
        """As `Client.server_info`."""
        return await self._call(
            lambda server: server.control.GetServerInfo,
            GetServerInfoRequest(),
            timeout_s,
            request_id,
        )

    async def health(
        self, service: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> HealthStatus:
        """As `Client.health`."""
        request = HealthCheckRequest(service=service)
        try:
            response = await self._call(
                lambda server: server.check_health, request, timeout_s, request_id
            )
        except ModelNotFoundError:  # NOT_FOUND, in the health protocol: no such service
            return HealthStatus.UNKNOWN
        return health_status(response)

    async def close(self) -> None:
        """As `Client.close`."""
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
        self._calls = AsyncCalls(self._planner)

    async def _call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout_s: float | None,
        request_id: str,
    ) -> Response:
        response, _ = await self._calls.unary(
            method,
            request,
            deadline=self._planner.deadline(timeout_s),
            request_id=request_id or new_request_id(),
        )
        return response

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
        self, parts: Sequence[Part[EmbedRequest]], deadline: Deadline, request_id: str
    ) -> Embeddings:
        answers = await self._run(lambda server: server.embed.Embed, parts, deadline, request_id)
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

    async def _server_limits(self, deadline: Deadline) -> Limits:
        # No lock: several callers may ask at first, but none waits for another's answer.
        if self._limits is None:
            self._limits = await self._fetch_limits(deadline)
        return self._limits

    async def _fetch_limits(self, deadline: Deadline) -> Limits:
        try:
            response, _ = await self._calls.unary(
                lambda server: server.control.GetServerInfo,
                GetServerInfoRequest(),
                deadline=deadline,
                request_id=new_request_id(),
            )
        except (UnimplementedError, PermissionDeniedError):
            return DEFAULT_LIMITS
        return response.limits


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
