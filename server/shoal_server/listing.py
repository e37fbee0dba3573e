"""Which of many models are shown, in what order, and how many at a time. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from shoal_server.catalog import ListedModel
from shoal_server.core import ModelKind, is_name
from shoal_server.errors import InvalidInput
from shoal_server.lifecycle import ModelState
from shoal_server.registry.capabilities import Capabilities, InputType
from shoal_server.registry.repository import version_order
from shoal_server.registry.scopes import Scope


class Order(Enum):
    """What models are sorted by; the name decides between equals."""

    NAME = "name"
    STATE = "state"
    FILE_BYTES = "file_bytes"
    LAST_USED = "last_used"


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for; what is left out asks for nothing."""

    scope: Scope = Scope.NAMES
    """Among what is chosen."""
    states: frozenset[ModelState] = frozenset()
    """Any of them."""
    device: str = ""
    """In memory there."""
    tags: frozenset[str] = frozenset()
    """All of them."""
    words: tuple[str, ...] = ()
    """All of them, in any letters, somewhere in name, description, source, licence or tags."""
    kind: ModelKind | None = None
    dimensions: int = 0
    """Vectors of that size, whole or cut (Matryoshka); 0: any."""
    languages: tuple[str, ...] = ()
    """All of them, in small letters."""
    precision: str = ""
    """A graph in it."""
    input_type: InputType | None = None
    runs_on: str = ""
    """Can be run there: a device, or `cuda` for any GPU."""
    prompt: str = ""
    """Has one of that name."""
    tokens: int = 0
    """Takes inputs of so many; 0: any."""
    order: Order = Order.NAME
    descending: bool = False
    page_size: int = 0
    """0: all that there are."""
    page_token: str = ""
    """Where the page before ended; empty: at the beginning."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of what was asked for."""

    models: Sequence[ListedModel]
    total: int
    """On all pages."""
    next_token: str
    """Empty: this is the last."""


def select(models: Iterable[ListedModel], query: Query) -> Page:
    """The page of `models` that `query` asks for.

    A model that comes or goes between two pages neither repeats nor hides others, as
    long as what it is sorted by stays the same.

    Raises:
        InvalidInput: The page token is not one of ours, or of another order.
    """
    key = _KEYS[query.order]
    by_version = query.scope is Scope.EVERY_VERSION
    for is_wanted in _tests(query):
        models = [model for model in models if is_wanted(model)]
    found = [
        ((key(model), model.name, _version(model) if by_version else _NO_VERSION), model)
        for model in models
    ]
    found.sort(key=lambda each: each[0], reverse=query.descending)
    start = 0
    if query.page_token:
        last = _read_token(query.page_token, query)
        # Behind it, whether or not it is there yet. Order is total: names and versions differ.
        start = sum(each[0] >= last if query.descending else each[0] <= last for each in found)
    end = start + query.page_size if query.page_size else len(found)
    page = found[start:end]
    is_last = end >= len(found) or not page
    return Page(
        models=[model for _, model in page],
        total=len(found),
        next_token="" if is_last else _write_token(page[-1][0], query),
    )


def _tests(query: Query) -> list[Callable[[ListedModel], bool]]:
    """What is asked of each model; what costs least to find out comes first."""
    tests = [_asked(has_it) for has_it in _capability_tests(query)]
    if query.words:
        tests.append(lambda model: _has_words(model, query.words))
    if query.tags:
        tests.append(lambda model: query.tags.issubset(model.tags))
    if query.runs_on:
        tests.append(lambda model: _runs_on(model, query.runs_on))
    if query.device:
        tests.append(lambda model: _device(model) == query.device)
    if query.states:
        tests.append(lambda model: model.state in query.states)
    return tests


def _capability_tests(query: Query) -> list[Callable[[Capabilities], bool]]:
    tests: list[Callable[[Capabilities], bool]] = []
    wanted = frozenset(query.languages)
    if query.kind is not None:
        tests.append(lambda can: can.kind is query.kind)
    if query.dimensions:
        tests.append(lambda can: query.dimensions in can.sizes)
    if query.tokens:
        tests.append(lambda can: can.max_tokens >= query.tokens)
    if query.input_type is not None:
        tests.append(lambda can: query.input_type in can.input_types)
    if query.prompt:
        tests.append(lambda can: query.prompt in can.prompts)
    if query.precision:
        tests.append(lambda can: query.precision in can.precisions)
    if query.languages:
        tests.append(lambda can: wanted <= can.spoken)
    return tests


def _asked(has_it: Callable[[Capabilities], bool]) -> Callable[[ListedModel], bool]:
    def is_wanted(model: ListedModel) -> bool:
        can = model.files.capabilities
        return can is not None and has_it(can)

    return is_wanted


def _runs_on(model: ListedModel, device: str) -> bool:
    if device == "cuda":
        return any(each.startswith("cuda") for each in model.devices)
    return device in model.devices


def _device(model: ListedModel) -> str | None:
    resident = model.resident
    return resident.device if resident else None


def _has_words(model: ListedModel, words: Sequence[str]) -> bool:
    text = model.files.text
    left = [word for word in words if word not in text]
    if not left:
        return True
    tags = "\n".join(model.tags).lower()
    return all(word in tags for word in left)


_Key = str | float
_Version = tuple[list[tuple[int, int, str]], str]
# What is listed is sorted by.
_Place = tuple[_Key, str, _Version]

_NO_VERSION: _Version = ([], "")


def _version(model: ListedModel) -> _Version:
    return _version_place(model.files.key.version) if model.files.key else _NO_VERSION


def _version_place(version: str) -> _Version:
    return version_order(version), version  # 1 and 01 are as old


def _state(model: ListedModel) -> _Key:
    return model.state.value


def _file_bytes(model: ListedModel) -> _Key:
    return model.files.chosen.file_bytes if model.files.chosen else 0


def _last_used(model: ListedModel) -> _Key:
    resident = model.resident
    return resident.last_used_s if resident else 0.0


_KEYS: dict[Order, Callable[[ListedModel], _Key]] = {
    Order.NAME: lambda model: model.name,
    Order.STATE: _state,
    Order.FILE_BYTES: _file_bytes,
    Order.LAST_USED: _last_used,
}


def _write_token(last: _Place, query: Query) -> str:
    key, name, (_, version) = last
    facts = [query.scope.value, query.order.value, query.descending, key, name, version]
    return base64.urlsafe_b64encode(json.dumps(facts).encode()).decode()


def _read_token(token: str, query: Query) -> _Place:
    try:
        scope, order, descending, key, name, version = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise InvalidInput("page_token", "is not one that ListModels gave") from None
    is_number = isinstance(key, int | float) and not isinstance(key, bool)
    wants_number = query.order in (Order.FILE_BYTES, Order.LAST_USED)
    if (
        (scope, order, descending) != (query.scope.value, query.order.value, query.descending)
        or not isinstance(name, str)
        or not isinstance(version, str)
        or not (version == "" or is_name(version))
        or (not is_number if wants_number else not isinstance(key, str))
    ):
        raise InvalidInput("page_token", "is of another list than this request asks for")
    return key, name, _version_place(version)
