"""What a call can raise, as a tree.

    ShoalError
    ├── InvalidArgumentError      the input is wrong, now and later; also a ValueError
    ├── UnauthenticatedError      no token, or not a valid one
    ├── PermissionDeniedError     the token does not allow this
    ├── ModelNotFoundError        no such model or version
    ├── FailedPreconditionError   the model can not do this, as things stand
    ├── OverloadedError           no room now; says when to come back
    ├── OutOfRangeError           the events asked for are no longer kept
    ├── DeadlineExceededError     the time given ran out
    ├── UnavailableError          no server can be reached, or it is going away
    ├── UnimplementedError        the server does not know the call
    └── InternalError             the run failed, or the answer made no sense

Every one carries what the server said in `google.rpc` details. The class follows
from the gRPC code; `reason` tells more precisely, e.g. `MODEL_FILE_CORRUPT`.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from google.protobuf.any_pb2 import Any as AnyMessage

DOMAIN = "shoal"
REQUEST_ID_KEY = "x-request-id"
_DETAILS_KEY = "grpc-status-details-bin"
_INPUT_INDEX = re.compile(r"(texts|tokens|images)\[(\d+)\]")


class ShoalError(Exception):
    """Base of all that a call raises.

    Attributes:
        message: One sentence; what `str()` gives.
        code: The gRPC status code.
        reason: Stable name of the cause, part of the API, such as `OVERLOADED`;
            empty where the answer did not come from Shoal itself.
        field: The field that is wrong, as the protos name it, such as
            `texts[3]`; empty when it is not about a field.
        metadata: Facts as strings, such as the limit and the value given.
        retry_after_s: Seconds after which a new try has a chance; None when the
            server did not say.
        request_id: Id of the call in the server's logs.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        if request_id:
            self.add_note(f"request id: {request_id}")

    def __str__(self) -> str:
        return self.message

    @property
    def input_index(self) -> int | None:
        """Index of the input that `field` names; None when it names none."""
        match = _INPUT_INDEX.match(self.field)
        return None if match is None else int(match[2])

    def shift_index(self, offset: int) -> None:
        """Count the input that `field` names from another one than the request's first.

        Args:
            offset: Inputs from there to the first one of the request that failed.
        """
        match = _INPUT_INDEX.match(self.field)
        if match is None:
            return
        here, there = match[0], f"{match[1]}[{int(match[2]) + offset}]"
        self.field = self.field.replace(here, there, 1)
        self.message = self.message.replace(here, there, 1)


class InvalidArgumentError(ShoalError, ValueError):
    """The input can not be served as it is, now or later; `field` names it."""


class UnauthenticatedError(ShoalError):
    """The server wants a token, or refuses the one that was sent."""


class PermissionDeniedError(ShoalError):
    """The token does not allow this call."""


class ModelNotFoundError(ShoalError):
    """The server has no such model, or not that version of it."""


class FailedPreconditionError(ShoalError):
    """The model is there but can not do what was asked; `reason` says why."""


class OverloadedError(ShoalError):
    """There was no room, or a message was too large for gRPC."""


class OutOfRangeError(ShoalError):
    """The events from there on are no longer kept, or there were none such yet."""

    @property
    def resume_after(self) -> int | None:
        """For `after_sequence`, to go on with the oldest that is kept."""
        number = self.metadata.get("resume_after", "")
        return int(number) if number.isdecimal() else None


class DeadlineExceededError(ShoalError):
    """The time given for the call ran out.

    Where it cut off a retry, `message` tells also how the try before ended, and
    `reason`, `metadata` and `retry_after_s` are of that one: `OVERLOADED`, say.
    """


class UnavailableError(ShoalError):
    """No server could be reached, or the one that was is going away."""


class UnimplementedError(ShoalError):
    """The server does not know this call."""


class InternalError(ShoalError):
    """The run failed, or the answer made no sense."""


_CLASSES: Mapping[grpc.StatusCode, type[ShoalError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    # Not by the caller, whose own cancelling raises no status: a server that shuts
    # down ends so what it had not begun.
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
}
_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc_error(error: grpc.RpcError, request_id: str = "") -> ShoalError:
    """The typed error for a call that gRPC ended.

    Args:
        error: As raised by a stub, of grpc or of grpc.aio.
        request_id: The id that was sent; the server's own, where it came back,
            is taken before it.
    """
    # The same pairs from grpc and grpc.aio, whose stubs agree neither here nor there.
    trailing = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    details: Sequence[AnyMessage] = ()
    for key, value in trailing:
        if key == _DETAILS_KEY:
            details = _status_details(value)
    typed = _build(
        error.code(), error.details() or "", details, answered_request_id(trailing, request_id)
    )
    typed.__cause__ = error
    return typed


def from_status(status: status_pb2.Status, request_id: str = "") -> ShoalError:
    """The typed error for one answer of a stream."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _build(code, status.message, status.details, request_id)


def stream_ended() -> UnavailableError:
    """The error for a stream that the server ended before it answered everything."""
    return UnavailableError("the server ended the stream", code=grpc.StatusCode.UNAVAILABLE)


def client_closed() -> UnavailableError:
    """The error for a call whose client was closed before there was an answer."""
    return UnavailableError("the client was closed", code=grpc.StatusCode.CANCELLED)


def twin(error: Exception) -> Exception:
    """The same error for one more caller: what is raised twice mixes up its tracebacks."""
    another = copy.copy(error)
    another.__cause__ = error.__cause__
    return another


def answered_request_id(trailing: Iterable[tuple[str, str | bytes]], sent: str) -> str:
    """The id that the server gave the call; the one that was sent if it gave none."""
    for key, value in trailing:
        if key == REQUEST_ID_KEY:
            return str(value)
    return sent


def _status_details(serialized: str | bytes) -> Sequence[AnyMessage]:
    try:
        status = status_pb2.Status.FromString(serialized)
    except DecodeError:  # of some proxy; the plain code still tells the class
        status = status_pb2.Status()
    return tuple(status.details)


def _build(
    code: grpc.StatusCode, message: str, details: Iterable[AnyMessage], request_id: str
) -> ShoalError:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in details:
        for known in (info, bad_request, retry):
            if detail.Is(known.DESCRIPTOR):
                known.ParseFromString(detail.value)
    violations = bad_request.field_violations
    return _CLASSES.get(code, ShoalError)(
        message,
        code=code,
        reason=info.reason if info.domain == DOMAIN else "",
        field=violations[0].field if violations else "",
        metadata=info.metadata,
        retry_after_s=(
            retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None
        ),
        request_id=request_id,
    )
