"""Arguments that a request can not hold: refused with the field's name and the value."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from shoal_client.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

UINT32_MAX = (1 << 32) - 1
UINT64_MAX = (1 << 64) - 1
# Of google.protobuf.Duration, by its definition: about 10,000 years.
_DURATION_MAX_S = 315_576_000_000

OptionalInt = TypeVar("OptionalInt", int, int | None)


def whole(value: OptionalInt, field: str, most: int = UINT32_MAX) -> OptionalInt:
    """`value`, where an unsigned field can hold it.

    Raises:
        InvalidArgumentError: It is below 0 or above `most`.
        TypeError: It is no whole number.
    """
    if value is None:
        return value
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{field} is {type(value).__name__}, not int") from None
    if not 0 <= number <= most:
        raise invalid(field, f"{number} is not a number from 0 to {most}")
    return value


def all_whole(values: Iterable[int], field: str) -> list[int]:
    """`values`, where a repeated unsigned field can hold them; errors as in `whole`."""
    return [whole(value, f"{field}[{index}]") for index, value in enumerate(values)]


def duration(seconds: float | None, field: str) -> Duration | None:
    """Seconds as a message.

    Raises:
        InvalidArgumentError: They are below 0, too many, or no number.
    """
    if seconds is None:
        return None
    if not 0 <= seconds <= _DURATION_MAX_S:
        raise invalid(field, f"{seconds:g} s is not a time from 0 to {_DURATION_MAX_S} s")
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def invalid(field: str, message: str) -> InvalidArgumentError:
    """The error for an argument that can not be sent, as if the server had refused it."""
    return InvalidArgumentError(
        f"{field}: {message}",
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="INVALID_INPUT",
        field=field,
    )
