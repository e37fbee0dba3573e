"""The client for threads."""

from __future__ import annotations

from contextlib import closing
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
from shoal_client.sync.calls import Calls, Method, Request, Response

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from types import TracebackType

    from shoal_client.pipeline import Pipeline
    from shoal_client.retry import Deadline


class Client(ClientBase):
    """A client of one or more Shoal servers; threads may share it.

    Every method takes `timeout_s`, seconds for the whole call with its retries
    (default: the client's), and `request_id`, which the server writes to its
    logs (default: one is made), and raises a `ShoalError`.

        with Client("127.0.0.1:50051") as client:
            vectors = client.embed(["one text", "another"]).vectors

    With several servers each call goes to the next one in turn. To steer or ask one
    of them, make a client of its address.
    """

    def embed(
        self,
        texts: Iterable[str],
        *,
        timeout_s: float | None = None,
        request_id: str = "",
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """One vector for each text, in order.

        More texts than one request may hold are split and sent together. If a
        part fails the others are cancelled.

        Args:
            texts: An empty text is valid; none at all are not.
            timeout_s: See the class.
            request_id: See the class.
            **options: See `EmbedOptions`.

        Raises:
            ShoalError: See `errors`.
            TypeError: `texts` is a single str, or holds something else.
        """
        request = new_embed_request(**options)
        deadline = self._planner.deadline(timeout_s)
        limits = PartLimits.of(self._server_limits(deadline), request)
        return self._embed(text_parts(texts, request, limits), deadline, request_id)

    def embed_tokens(
        self,
        tokens: Iterable[Sequence[int]],
        *,
        timeout_s: float | None = None,
        request_id: str = "",
        **options: Unpack[EmbedOptions],
    ) -> Embeddings:
        """One vector for each list of token ids, in order.

        Args:
            tokens: Ids as the model's tokenizer makes them, special tokens
                included.
            timeout_s: See the class.
            request_id: See the class.
            **options: See `EmbedOptions`; a prompt can not be put before ids.

        Raises:
            ShoalError: See `errors`.
        """
        request = new_embed_request(**options)
        deadline = self._planner.deadline(timeout_s)
        limits = PartLimits.of(self._server_limits(deadline), request)
        return self._embed(token_parts(tokens, request, limits), deadline, request_id)

    def embed_iter(
        self,
        texts: Iterable[str],
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout_s: float | None = None,
        request_id: str = "",
        **options: Unpack[EmbedOptions],
    ) -> Generator[Vectors, None, None]:
        """The vector of each text, in order, for any number of texts.

        As `embed_chunks`, a row at a time. Rows of "int8" come without their
        scale, which cosine similarity does not need; `embed_chunks` has it.
        """
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
        texts: Iterable[str],
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout_s: float | None = None,
        request_id: str = "",
        **options: Unpack[EmbedOptions],
    ) -> Generator[Embeddings, None, None]:
        """The vectors of any number of texts, in order, some at a time.

        Goes over one stream, which is opened again, maybe on another server,
        when it breaks. The iterable is read by the thread that reads the
        results, ahead of them by at most `max_in_flight` texts; with
        `chunk_size=1, max_in_flight=1` each text is answered before the next is
        read. Closing the generator cancels what is in flight.

        Args:
            texts: Any iterable.
            chunk_size: Texts in one request, and so in one result.
            max_in_flight: Texts read and not yet given back as vectors, which
                bounds the memory.
            timeout_s: Seconds for each request, retries included.
            request_id: See the class.
            **options: See `EmbedOptions`.

        Returns:
            Results whose `truncated` counts from their own first row.

        Raises:
            ShoalError: See `errors`; raised where the result would have come.
            TypeError: `texts` is a single str, or holds something else.
        """
        request = new_embed_request(**options)
        pipeline = self._planner.pipeline(timeout_s, max_in_flight, request_id or new_request_id())
        chunk_size = bounded_chunk_size(chunk_size, max_in_flight)
        return self._chunks(iterable_of_texts(texts), request, chunk_size, pipeline)

    def tokenize(
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
        """The token ids that `embed` would give the model, for each text.

        Args:
            texts: As for `embed`, split as there.
            model: See `EmbedOptions`.
            truncate: See `EmbedOptions`.
            prompt_name: See `EmbedOptions`.
            include_strings: Also return the tokens' strings.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ShoalError: See `errors`.
            TypeError: `texts` is a single str, or holds something else.
        """
        request = TokenizeRequest(
            model=model,
            truncate=truncate,
            prompt_name=prompt_name,
            include_strings=include_strings,
        )
        deadline = self._planner.deadline(timeout_s)
        parts = text_parts(texts, request, PartLimits.of(self._server_limits(deadline), request))
        answers = self._run(lambda server: server.embed.Tokenize, parts, deadline, request_id)
        return [result for response, _ in answers for result in response.results]

    def list_models(
        self, *, timeout_s: float | None = None, request_id: str = ""
    ) -> list[ModelInfo]:
        """Every model of the server's repository, by name, in memory or not."""
        response = self._call(
            lambda server: server.control.ListModels, ListModelsRequest(), timeout_s, request_id
        )
        return list(response.models)

    def get_model(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> ModelInfo:
        """One model.

        Args:
            model: "name", "name@version" or an alias; empty: the default model.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ModelNotFoundError: The repository has none of that name.
        """
        request = GetModelRequest(model=model)
        return self._call(
            lambda server: server.control.GetModel, request, timeout_s, request_id
        ).model

    def load_model(
        self,
        model: str = "",
        *,
        pin: bool | None = None,
        device: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """Bring a model into memory; returns when it can serve.

        Args:
            model: See `get_model`.
            pin: True: never evicted to make room. Default: as it is.
            device: "auto", "cpu", "cuda" or "cuda:N". Default: the model's.
            timeout_s: See the class. Large models take long to load.
            request_id: See the class.

        Raises:
            FailedPreconditionError: It can not be loaded, or not there.
            OverloadedError: There is no room, and nothing that may be evicted.
        """
        request = LoadModelRequest(model=model, pin=pin, device=device)
        return self._call(
            lambda server: server.control.LoadModel, request, timeout_s, request_id
        ).model

    def unload_model(
        self,
        model: str = "",
        *,
        force_after_s: float | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelInfo:
        """Take a model out of memory; returns when the memory is free.

        Args:
            model: See `get_model`.
            force_after_s: Seconds that requests in flight get to finish, before
                they fail. Default: as long as the timeout allows.
            timeout_s: See the class.
            request_id: See the class.
        """
        request = new_unload_request(model, force_after_s)
        return self._call(
            lambda server: server.control.UnloadModel, request, timeout_s, request_id
        ).model

    def server_info(
        self, *, timeout_s: float | None = None, request_id: str = ""
    ) -> GetServerInfoResponse:
        """Version, limits, devices and memory of the server that answers."""
        return self._call(
            lambda server: server.control.GetServerInfo,
            GetServerInfoRequest(),
            timeout_s,
            request_id,
        )

    def health(
        self, service: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> HealthStatus:
        """Whether the server that answers takes requests.

        Args:
            service: Empty for all of it, or "shoal.v1.EmbedService", or
                "shoal.model/<name>".
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            UnavailableError: No server can be reached.
        """
        request = HealthCheckRequest(service=service)
        try:
            response = self._call(
                lambda server: server.check_health, request, timeout_s, request_id
            )
        except ModelNotFoundError:  # NOT_FOUND, in the health protocol: no such service
            return HealthStatus.UNKNOWN
        return health_status(response)

    def close(self) -> None:
        """End all calls and close the connections. The client can not be used again."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        self._calls = Calls(self._planner)

    def _call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout_s: float | None,
        request_id: str,
    ) -> Response:
        response, _ = self._calls.unary(
            method,
            request,
            deadline=self._planner.deadline(timeout_s),
            request_id=request_id or new_request_id(),
        )
        return response

    def _run(
        self,
        method: Method[PartRequest, Response],
        parts: Sequence[Part[PartRequest]],
        deadline: Deadline,
        request_id: str,
    ) -> list[tuple[Response, str]]:
        return self._calls.unary_parts(
            method,
            parts,
            deadline=deadline,
            request_id=request_id or new_request_id(),
            concurrency=self._concurrency,
        )

    def _embed(
        self, parts: Sequence[Part[EmbedRequest]], deadline: Deadline, request_id: str
    ) -> Embeddings:
        answers = self._run(lambda server: server.embed.Embed, parts, deadline, request_id)
        return join([decode(response, answered_id) for response, answered_id in answers])

    def _chunks(
        self, texts: Iterable[str], template: EmbedRequest, chunk_size: int, pipeline: Pipeline
    ) -> Generator[Embeddings, None, None]:
        limits = PartLimits.of(self._server_limits(self._planner.deadline(None)), template)
        with self._calls.bulk_stream(pipeline) as stream:
            for request in _requests(texts, TextChunker(template, limits, chunk_size)):
                stream.submit(request)
                while not pipeline.has_room(chunk_size):
                    yield from stream.receive()
            while not pipeline.is_idle:
                yield from stream.receive()

    def _server_limits(self, deadline: Deadline) -> Limits:
        # No lock: several callers may ask at first, but none waits for another's answer.
        if self._limits is None:
            self._limits = self._fetch_limits(deadline)
        return self._limits

    def _fetch_limits(self, deadline: Deadline) -> Limits:
        try:
            response, _ = self._calls.unary(
                lambda server: server.control.GetServerInfo,
                GetServerInfoRequest(),
                deadline=deadline,
                request_id=new_request_id(),
            )
        except (UnimplementedError, PermissionDeniedError):
            return DEFAULT_LIMITS
        return response.limits


def _requests(texts: Iterable[str], chunker: TextChunker) -> Iterator[EmbedRequest]:
    for text in texts:
        if (request := chunker.add(text)) is not None:
            yield request
    if (last := chunker.flush()) is not None:
        yield last


def _rows(chunks: Generator[Embeddings, None, None]) -> Generator[Vectors, None, None]:
    with closing(chunks):
        for chunk in chunks:
            yield from chunk.vectors
