"""From ListModels' message to what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from shoal.v1 import model_control_pb2 as pb
from shoal_server.api.capabilities import INPUT_TYPES
from shoal_server.core import ModelKind, valid_device
from shoal_server.errors import InvalidInput
from shoal_server.lifecycle import ModelState
from shoal_server.listing import Order, Query
from shoal_server.registry.capabilities import InputType
from shoal_server.registry.scopes import Scope

T = TypeVar("T")

MAX_PAGE_SIZE = 1000
_MAX_TEXT_CHARACTERS = 256
_MAX_VALUES = 32

_STATES: Mapping[int, ModelState] = {
    pb.ModelState.Value(f"MODEL_STATE_{each.name}"): each for each in ModelState
}
_KINDS: Mapping[int, ModelKind] = {
    pb.ModelKind.Value(f"MODEL_KIND_{each.name}"): each for each in ModelKind
}
_INPUT_TYPES: Mapping[int, InputType] = {number: each for each, number in INPUT_TYPES.items()}
_SCOPES: Mapping[int, Scope] = {
    pb.MODEL_SCOPE_UNSPECIFIED: Scope.NAMES,
    **{pb.ModelScope.Value(f"MODEL_SCOPE_{each.name}"): each for each in Scope},
}
_ORDERS: Mapping[int, Order] = {
    pb.MODEL_ORDER_UNSPECIFIED: Order.NAME,
    **{pb.ModelOrder.Value(f"MODEL_ORDER_{each.name}"): each for each in Order},
}


def read_query(message: pb.ListModelsRequest) -> Query:
    """What is asked for.

    Raises:
        InvalidInput: A value is none of its enum, or out of its limits.
    """
    if message.page_size > MAX_PAGE_SIZE:
        raise InvalidInput("page_size", f"{message.page_size} models, at most {MAX_PAGE_SIZE}")
    if len(message.text) > _MAX_TEXT_CHARACTERS:
        raise InvalidInput(
            "text", f"{len(message.text)} characters, at most {_MAX_TEXT_CHARACTERS}"
        )
    for field, values in (("tags", message.tags), ("languages", message.languages)):
        if len(values) > _MAX_VALUES:
            raise InvalidInput(field, f"{len(values)} {field}, at most {_MAX_VALUES}")
    if message.runs_on == "auto":
        raise InvalidInput("runs_on", "'auto' is not one of cpu, cuda, cuda:N")
    scope = _known(_SCOPES, message.scope, "scope")
    if message.states and scope is Scope.DEREGISTERED:
        raise InvalidInput("states", "what is deregistered is in none")
    return Query(
        scope=scope,
        states=frozenset(_known(_STATES, each, "states") for each in message.states),
        device=valid_device(message.device, "device") if message.device else "",
        tags=frozenset(message.tags),
        words=tuple(message.text.lower().split()),
        kind=_known(_KINDS, message.kind, "kind") if message.kind else None,
        dimensions=message.dimensions,
        languages=tuple(each.lower() for each in message.languages),
        precision=message.precision,
        input_type=_known(_INPUT_TYPES, message.input_type, "input_type")
        if message.input_type
        else None,
        runs_on=valid_device(message.runs_on, "runs_on") if message.runs_on else "",
        prompt=message.prompt,
        tokens=message.tokens,
        order=_known(_ORDERS, message.order_by, "order_by"),
        descending=message.descending,
        page_size=message.page_size,
        page_token=message.page_token,
    )


def _known(table: Mapping[int, T], number: int, field: str) -> T:
    try:
        return table[number]
    except KeyError:
        raise InvalidInput(
            field, f"{number} is not a value of its enum; the values are {sorted(table)}"
        ) from None
