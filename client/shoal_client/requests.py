"""From the caller's arguments to requests. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar

from shoal.v1.capabilities_pb2 import InputType
from shoal.v1.embed_pb2 import EmbedRequest, Priority, TokenIds, VectorEncoding
from shoal.v1.model_control_pb2 import (
    DeregisterModelRequest,
    ListModelsRequest,
    ModelKind,
    ModelOrder,
    ModelScope,
    ModelState,
    UnloadModelRequest,
)
from shoal.v1.settings_pb2 import UpdateSettingsRequest
from shoal.v1.updates_pb2 import UpdateModelRequest, UpdateSource
from shoal.v1.versions_pb2 import AliasTarget, Deprecation, SwitchModelRequest
from shoal_client.ranges import UINT32_MAX, duration, invalid, whole

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

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

# Models in one answer to ListModels.
_LIST_PAGE = 500

T = TypeVar("T")


def _short_names(values: Iterable[tuple[str, T]], prefix: str) -> dict[str, T]:
    """The values of an enum by their names without its own, in small letters."""
    return {name.removeprefix(prefix).lower(): value for name, value in values}


_STATES = _short_names(ModelState.items()[1:], "MODEL_STATE_")
_KINDS = _short_names(ModelKind.items()[1:], "MODEL_KIND_")
_INPUT_TYPES = _short_names(InputType.items()[1:], "INPUT_TYPE_")
_SCOPES = _short_names(ModelScope.items()[1:], "MODEL_SCOPE_")
_ORDERS = _short_names(ModelOrder.items()[1:], "MODEL_ORDER_")
_SOURCES = _short_names(UpdateSource.items()[1:], "UPDATE_SOURCE_")

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
        keep_alive_s: Seconds that the server keeps the model in memory after its
            last use, until another request says otherwise; 0 releases it as soon as
            nobody uses it, a negative number keeps it however long it is idle.
            Default: as it was, at first the server's.
        routing_key: Of the caller, such as a user's id: where several versions share
            an alias's traffic, the same key always gets the same one. Default: any.
    """

    model: str
    normalize: bool | None
    dimensions: int | None
    encoding: Encoding
    truncate: bool | None
    prompt_name: str
    priority: PriorityName
    keep_alive_s: float | None
    routing_key: str


def new_embed_request(
    *,
    model: str = "",
    normalize: bool | None = None,
    dimensions: int | None = None,
    encoding: str = "float32",
    truncate: bool | None = None,
    prompt_name: str = "",
    priority: str = "normal",
    keep_alive_s: float | None = None,
    routing_key: str = "",
) -> EmbedRequest:
    """A request without inputs. For the arguments see `EmbedOptions`.

    Raises:
        InvalidArgumentError: The encoding or the priority has no such name, or a number is out
            of its range.
        TypeError: There is no such option.
    """
    return EmbedRequest(
        model=model,
        normalize=normalize,
        dimensions=whole(dimensions, "dimensions"),
        encoding=_named(encoding, ENCODINGS, "encoding"),
        truncate=truncate,
        prompt_name=prompt_name,
        priority=_named(priority, _PRIORITIES, "priority"),
        keep_alive_s=keep_alive_s,
        routing_key=routing_key,
    )


def new_request_id() -> str:
    """An id for a call whose caller gave none, so that every error can name one."""
    return secrets.token_hex(8)


def new_unload_request(model: str, force_after_s: float | None) -> UnloadModelRequest:
    """A request to take a model out of memory."""
    return UnloadModelRequest(model=model, force_after=duration(force_after_s, "force_after_s"))


def new_deregister_request(model: str, force_after_s: float | None) -> DeregisterModelRequest:
    """A request to neither serve nor list a model any longer."""
    return DeregisterModelRequest(model=model, force_after=duration(force_after_s, "force_after_s"))


def new_list_request(
    text: str,
    states: Iterable[str],
    device: str,
    tags: Iterable[str],
    kind: str,
    dimensions: int,
    languages: Iterable[str],
    precision: str,
    input_type: str,
    runs_on: str,
    prompt: str,
    tokens: int,
    scope: str,
    order_by: str,
    descending: bool,
) -> ListModelsRequest:
    """A request for the models that have all of this, a page at a time.

    Raises:
        InvalidArgumentError: A state, the kind, the type of inputs, the scope or the order
            has no such name.
    """
    return ListModelsRequest(
        text=text,
        states=[_named(name, _STATES, "states") for name in states],
        device=device,
        tags=tags,
        kind=_named(kind, _KINDS, "kind") if kind else ModelKind.MODEL_KIND_UNSPECIFIED,
        dimensions=whole(dimensions, "dimensions"),
        languages=languages,
        precision=precision,
        input_type=_named(input_type, _INPUT_TYPES, "input_type")
        if input_type
        else InputType.INPUT_TYPE_UNSPECIFIED,
        runs_on=runs_on,
        prompt=prompt,
        tokens=whole(tokens, "tokens"),
        scope=_named(scope, _SCOPES, "scope"),
        order_by=_named(order_by, _ORDERS, "order_by"),
        descending=descending,
        page_size=_LIST_PAGE,
    )


def new_switch_request(
    alias: str, targets: str | Mapping[str, int], keep_previous: bool
) -> SwitchModelRequest:
    """A request to let an alias stand for one target, or for several by weight.

    Raises:
        InvalidArgumentError: A weight is out of its range.
        TypeError: Several targets came without weights.
    """
    weights = {targets: 1} if isinstance(targets, str) else targets
    if not isinstance(weights, Mapping):
        raise TypeError("targets is a name, or a mapping from names to weights: {name: 1}")
    return SwitchModelRequest(
        alias=alias,
        targets=[
            AliasTarget(model=model, weight=whole(weight, f"targets[{index}].weight"))
            for index, (model, weight) in enumerate(weights.items())
        ],
        keep_previous=keep_previous,
    )


def new_update_request(model: str, source: str) -> UpdateModelRequest:
    """A request to go over to a newer version; an empty source is the server's setting.

    Raises:
        InvalidArgumentError: There is no source of that name.
    """
    return UpdateModelRequest(
        model=model,
        source=_named(source, _SOURCES, "source")
        if source
        else UpdateSource.UPDATE_SOURCE_UNSPECIFIED,
    )


def new_settings_request(
    settings: Mapping[str, str] | None, persist: bool
) -> UpdateSettingsRequest:
    """A request to change settings.

    Raises:
        TypeError: A value is no str; the command line's words are meant.
    """
    for name, value in (settings or {}).items():
        if not isinstance(value, str):
            raise TypeError(
                f"settings[{name}] is {type(value).__name__}, not str: values are given as on the "
                "command line"
            )
    return UpdateSettingsRequest(settings=settings or {}, persist=persist)


def new_deprecation(replacement: str, message: str, refuse_after: datetime | None) -> Deprecation:
    """A deprecation from now on.

    Raises:
        InvalidArgumentError: The time has no time zone, and so no one meaning.
    """
    deprecation = Deprecation(replacement=replacement, message=message)
    if refuse_after is not None:
        if refuse_after.tzinfo is None:
            raise invalid("refuse_after", "it needs a time zone, such as datetime.UTC")
        deprecation.refuse_after.FromDatetime(refuse_after)
    return deprecation


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
        raise invalid(
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
        raise invalid(f"tokens[{index}]", f"{error}; ids are from 0 to {UINT32_MAX}") from None


def _named(name: str, values: Mapping[str, T], field: str) -> T:
    try:
        return values[name]
    except KeyError:
        raise invalid(field, f"{name!r} is not one of {', '.join(values)}") from None
