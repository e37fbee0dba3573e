"""The client for threads."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Self, Unpack

from shoal.v1.embed_pb2 import EmbedRequest, TokenizedText, TokenizeRequest
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
from shoal_client.sync.calls import Method, Response
from shoal_client.sync.coalescing import Coalescer
from shoal_client.sync.control import ControlClient

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from types import TracebackType

    from shoal_client.pipeline import Pipeline
    from shoal_client.retry import Deadline


class Client(ControlClient):
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
        return self._embed(text_parts(texts, request, limits), limits, deadline, request_id)

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
        return self._embed(token_parts(tokens, request, limits), limits, deadline, request_id)

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
        routing_key: str = "",
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
            routing_key: See `EmbedOptions`.
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
            routing_key=routing_key,
        )
        deadline = self._planner.deadline(timeout_s)
        parts = text_parts(texts, request, PartLimits.of(self._server_limits(deadline), request))
        answers = self._run(lambda server: server.embed.Tokenize, parts, deadline, request_id)
        return [result for response, _ in answers for result in response.results]

    def close(self) -> None:
        """End all calls and close the connections. The client can not be used again."""
        if self._coalescer is not None:
            self._coalescer.close()
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
        super()._open()
        self._coalescer: Coalescer | None = None
        if self._coalescing is not None:
            self._coalescer = Coalescer(self._coalescing, self._calls, self._planner)

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
                return coalescer.embed(request, limits, deadline)
        answers = self._run(lambda server: server.embed.Embed, parts, deadline, request_id)
        if again := strays(parts, answers):
            redone = self._run(
                lambda server: server.embed.Embed,
                [parts[index] for index in again],
                deadline,
                request_id,
            )
            for index, answer in zip(again, redone, strict=True):
                answers[index] = answer
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
