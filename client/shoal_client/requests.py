"""From the caller's arguments to requests. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from shoal.v1.embed_pb2 import EmbedRequest, Priority, TokenIds, VectorEncoding
from shoal.v1.model_control_pb2 import UnloadModelRequest
from shoal_client.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Encoding = Literal["float32", "float16", "int8", "ubinary"]
PriorityName = Literal["low", "normal", "high"]

ENCODINGS: Mapping[str, VectorEncoding.ValueType] = {
    "float32": VectorEncoding.VECTOR_ENCODING_FLOAT32,
    "float16": VectorEncoding.VECTOR_ENCODING_FLOAT16,
    "int8": VectorEncoding.VECTOR_ENCODING_INT8,
    "ubinary": VectorEncoding.VECTOR_ENCODING_UBINARY,
}
_PRIORITIES: Mapping[str, Priority.ValueType] = {
    "low": Priority.PRIORITY_LOW,
    "normal": Priority.PRIORITY_NORMAL,
    "high": Priority.PRIORITY_HIGH,
}

T = TypeVar("T")
Texts = TypeVar("Texts")


class EmbedOptions(TypedDict, total=False):
    """How texts are embedded; each may be left out.

    Attributes:
        model: "name", "name@version" or an alias. Default: the server's.
        normalize: True for unit length, False for the pooled vector before any
            normalisation. Default: as the model's authors define it.
        dimensions: The first so many dimensions (Matryoshka), normalised again.
            Default: all.
        encoding: How vectors travel, and the dtype they arrive in. Default:
            "float32".
        truncate: False refuses inputs above the model's maximum tokens in place
            of cutting them. Default: True.
        prompt_name: A prompt of the model, put before each text. Default: the
            model's default prompt, mostly none.
        priority: Who goes first when requests wait. Default: "normal".
    """

    model: str
    normalize: bool | None
    dimensions: int | None
    encoding: Encoding
    truncate: bool | None
    prompt_name: str
    priority: PriorityName


def new_embed_request(
    *,
    model: str = "",
    normalize: bool | None = None,
    dimensions: int | None = None,
    encoding: str = "float32",
    truncate: bool | None = None,
    prompt_name: str = "",
    priority: str = "normal",
) -> EmbedRequest:
    """A request without inputs. For the arguments see `EmbedOptions`.

    Raises:
        InvalidArgumentError: The encoding or the priority has no such name.
        TypeError: There is no such option.
    """
    return EmbedRequest(
        model=model,
        normalize=normalize,
        dimensions=dimensions,
        encoding=_named(encoding, ENCODINGS, "encoding"),
        truncate=truncate,
        prompt_name=prompt_name,
        priority=_named(priority, _PRIORITIES, "priority"),
    )


def new_unload_request(model: str, force_after_s: float | None) -> UnloadModelRequest:
    """A request to take a model out of memory."""
    force_after = None
    if force_after_s is not None:
        force_after = Duration()
        force_after.FromNanoseconds(round(force_after_s * 1e9))
    return UnloadModelRequest(model=model, force_after=force_after)


def iterable_of_texts(texts: Texts) -> Texts:
    """`texts`, unless it is one single text.

    Raises:
        TypeError: A str was given; its characters would be taken for texts.
    """
    if isinstance(texts, str):
        raise TypeError("texts is a single str; pass a list: [text]")
    return texts


def text_bytes(text: object, index: int) -> int:
    """UTF-8 bytes of a text.

    Args:
        text: What the caller gave.
        index: Where it stands, for the message.

    Raises:
        TypeError: It is not a str.
        InvalidArgumentError: It holds a lone surrogate, which UTF-8 can not say.
    """
    if not isinstance(text, str):
        raise TypeError(f"texts[{index}] is {type(text).__name__}, not str")
    if text.isascii():  # known without looking at the characters
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise _invalid(
            f"texts[{index}]",
            f"character {error.start} is a lone surrogate, which is not valid Unicode",
        ) from None


def token_ids(ids: Iterable[int], index: int) -> TokenIds:
    """One list of token ids, as a request takes it.

    Args:
        ids: What the caller gave.
        index: Where it stands, for the message.

    Raises:
        InvalidArgumentError: An id is not an unsigned 32-bit integer.
    """
    try:
        return TokenIds(ids=ids)
    except ValueError as error:
        raise _invalid(f"tokens[{index}]", str(error)) from None


def _named(name: str, values: Mapping[str, T], field: str) -> T:
    try:
        return values[name]
    except KeyError:
        raise _invalid(field, f"{name!r} is not one of {', '.join(values)}") from None


def _invalid(field: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{field}: {message}",
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="INVALID_INPUT",
        field=field,
    )
