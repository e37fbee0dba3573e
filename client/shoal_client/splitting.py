"""Splitting what the caller gave into requests that the server's limits allow. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from shoal.v1.embed_pb2 import EmbedRequest, EmbedResponse, TokenizeRequest
from shoal.v1.model_control_pb2 import Limits
from shoal_client.requests import iterable_of_texts, text_bytes, token_ids

_MIB = 1024 * 1024
# The server's own defaults, for one that does not tell (docs/configuration.md).
DEFAULT_LIMITS = Limits(
    texts_per_request=2048, bytes_per_request=16 * _MIB, message_bytes=64 * _MIB
)
# What comes on top, at most: tag and length of an input; the fields of an answer that
# grow with nothing; and a row's token count, index and scale.
_INPUT_OVERHEAD_BYTES = 8
# Around a request in a stream, and a routing key and a version that were not asked for.
_REQUEST_OVERHEAD_BYTES = 384
_ANSWER_OVERHEAD_BYTES = 1024
_ROW_OVERHEAD_BYTES = 16
# Widest vectors in common use; stands in for a model's dimensions, which would
# cost a call to find out.
_ASSUMED_DIMENSIONS = 4096

T = TypeVar("T")
PartRequest = TypeVar("PartRequest", EmbedRequest, TokenizeRequest)


@dataclass(frozen=True, slots=True)
class PartLimits:
    """What one request may hold.

    Attributes:
        items: Inputs.
        bytes: Of the inputs, serialized.
    """

    items: int
    bytes: int

    @classmethod
    def of(cls, limits: Limits, template: EmbedRequest | TokenizeRequest) -> PartLimits:
        """The limits of one request such that neither it nor its answer is too large.

        Args:
            limits: The server's; what it left unset has its default.
            template: The request without inputs.
        """
        items = limits.texts_per_request or DEFAULT_LIMITS.texts_per_request
        request_bytes = limits.bytes_per_request or DEFAULT_LIMITS.bytes_per_request
        message_bytes = limits.message_bytes or DEFAULT_LIMITS.message_bytes
        if isinstance(template, EmbedRequest):
            # float32 is the widest encoding
            row_bytes = 4 * (template.dimensions or _ASSUMED_DIMENSIONS) + _ROW_OVERHEAD_BYTES
            items = min(items, max(1, (message_bytes - _ANSWER_OVERHEAD_BYTES) // row_bytes))
        overhead_bytes = template.ByteSize() + _REQUEST_OVERHEAD_BYTES
        return cls(items, max(1, min(request_bytes, message_bytes) - overhead_bytes))


class Splitter(Generic[T]):
    """Groups inputs, in order, into parts that one request may hold.

    An input that is too large by itself makes a part of its own, which the server
    then refuses by name.
    """

    __slots__ = ("_bytes", "_items", "_limits")

    def __init__(self, limits: PartLimits) -> None:
        self._limits = limits
        self._items: list[T] = []
        self._bytes = 0

    def add(self, item: T, size_bytes: int) -> list[T] | None:
        """Take one more input; returns the part that it completed, if it did."""
        size_bytes += _INPUT_OVERHEAD_BYTES
        complete = None
        if self._items and self._bytes + size_bytes > self._limits.bytes:
            complete = self.flush()
        self._items.append(item)
        self._bytes += size_bytes
        if complete is None and len(self._items) >= self._limits.items:
            complete = self.flush()
        return complete

    def flush(self) -> list[T]:
        """Take what is left, which may be nothing."""
        part, self._items, self._bytes = self._items, [], 0
        return part


class TextChunker:
    """Groups the texts of any iterable, in order, into requests of a bulk job."""

    __slots__ = ("_count", "_splitter", "_template")

    def __init__(self, template: EmbedRequest, limits: PartLimits, chunk_size: int) -> None:
        """Begin with the first text.

        Args:
            template: The options of each request.
            limits: What the server allows in one.
            chunk_size: Texts in one request, if the server allows so many.
        """
        _keep_together(template)
        self._template = template
        self._splitter: Splitter[str] = Splitter(
            PartLimits(items=min(chunk_size, limits.items), bytes=limits.bytes)
        )
        self._count = 0

    def add(self, text: str) -> EmbedRequest | None:
        """Take the next text; returns the request that it completed, if it did.

        Raises:
            TypeError: It is not a str.
            InvalidArgumentError: It is not valid Unicode.
        """
        size_bytes = text_bytes(text, self._count)
        self._count += 1
        return self._request(self._splitter.add(text, size_bytes))

    def flush(self) -> EmbedRequest | None:
        """The last request, unless nothing is left."""
        return self._request(self._splitter.flush())

    def _request(self, texts: list[str] | None) -> EmbedRequest | None:
        if not texts:
            return None
        request = EmbedRequest()
        request.CopyFrom(self._template)
        request.texts.extend(texts)
        return request


class Part(NamedTuple, Generic[PartRequest]):
    """One request of a call that was split.

    Attributes:
        offset: Inputs before its first one.
        request: Ready to be sent.
    """

    offset: int
    request: PartRequest


def text_parts(
    texts: Iterable[str], template: PartRequest, limits: PartLimits
) -> list[Part[PartRequest]]:
    """Split texts into requests. `template` may become the first of them.

    Raises:
        TypeError: `texts` is a str, or holds something else than str.
        InvalidArgumentError: A text is not valid Unicode.
    """
    texts = iterable_of_texts(texts)
    items = texts if isinstance(texts, (list, tuple)) else list(texts)
    sizes = [text_bytes(text, index) for index, text in enumerate(items)]
    return _parts(items, sizes, template, lambda request, part: request.texts.extend(part), limits)


def token_parts(
    tokens: Iterable[Sequence[int]], template: EmbedRequest, limits: PartLimits
) -> list[Part[EmbedRequest]]:
    """Split token ids into requests. `template` may become the first of them.

    Raises:
        InvalidArgumentError: An id is not an unsigned 32-bit integer.
    """
    items = [token_ids(ids, index) for index, ids in enumerate(tokens)]
    sizes = [item.ByteSize() for item in items]
    return _parts(items, sizes, template, lambda request, part: request.tokens.extend(part), limits)


def _parts(
    items: Sequence[T],
    sizes: Sequence[int],
    template: PartRequest,
    fill: Callable[[PartRequest, Sequence[T]], None],
    limits: PartLimits,
) -> list[Part[PartRequest]]:
    total_bytes = sum(sizes) + _INPUT_OVERHEAD_BYTES * len(sizes)
    if len(items) <= limits.items and total_bytes <= limits.bytes:  # nearly always
        fill(template, items)
        return [Part(0, template)]
    _keep_together(template)
    splitter: Splitter[T] = Splitter(limits)
    groups = [splitter.add(item, size) for item, size in zip(items, sizes, strict=True)]
    groups.append(splitter.flush())
    parts: list[Part[PartRequest]] = []
    offset = 0
    for group in groups:
        if group:
            request = type(template)()
            request.CopyFrom(template)
            fill(request, group)
            parts.append(Part(offset, request))
            offset += len(group)
    return parts


def strays(
    parts: Sequence[Part[EmbedRequest]], answers: Sequence[tuple[EmbedResponse, str]]
) -> list[int]:
    """The parts that another version answered than the last one: its name was switched.

    Their requests name the last one's version afterwards, so that they can be sent again.

    Returns:
        Their indices, ascending.
    """
    last, _ = answers[-1]
    found = []
    for index, (answer, _) in enumerate(answers):
        if (answer.model, answer.version) != (last.model, last.version):
            parts[index].request.model = f"{last.model}@{last.version}"
            found.append(index)
    return found


def _keep_together(template: EmbedRequest | TokenizeRequest) -> None:
    """Let all requests of one call get the same version, where several share the traffic."""
    template.routing_key = template.routing_key or secrets.token_hex(8)
