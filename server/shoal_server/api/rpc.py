"""What every RPC shares: parse, deadline, request id, error mapping, metrics, log.

Methods are registered with raw bytes on both sides and parsed here. grpc's own
deserialisers answer a malformed message with INTERNAL, and its interceptors cost
a coroutine each on every call.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError, Message

from shoal_server.api.callers import Callers
from shoal_server.api.status import DETAILS_KEY, code_of, rich_status
from shoal_server.deadlines import has_passed
from shoal_server.errors import InvalidInput, ShoalError
from shoal_server.telemetry.logs import request_id
from shoal_server.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

REQUEST_ID_KEY = "x-request-id"
DEPRECATED_KEY = "shoal-deprecated"
# Of one stream, which may ask for any number of models.
_DEPRECATED_TOLD = 16
# Ids made here: eight random digits of the process, then a number.
_PROCESS = secrets.token_hex(4)
_numbers = itertools.count(1)
# What may stand in a log line: printable ASCII, of bounded length.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# Of what a caller calls a model, in a log line; "name@version" is no longer.
_MODEL_CHARACTERS = 257

# Last as long as their callers like.
_OPEN_ENDED = frozenset(("EmbedStream", "WatchEvents", "ProfileModel"))

Request = TypeVar("Request", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Call:
    """One RPC as the servicers see it."""

    method: str
    request_id: str
    began_s: float
    """On the monotonic clock."""
    deadline_s: float | None
    size_bytes: int = 0
    """Of the request on the wire."""
    model: str = ""
    """For the log; set by servicers once known."""
    caller: str = ""
    """Who calls (see `api.callers`)."""
    deprecated: dict[str, None] = field(default_factory=dict)
    """Facts of the deprecated models that answered it; told in the trailing metadata."""


@dataclass(frozen=True, slots=True)
class RpcOptions:
    """What is taken in, and what is logged."""

    max_request_bytes: int
    log_requests: bool
    slow_request_s: float


class InternalError(ShoalError):
    """Something that nobody raised on purpose; the log says what."""

    reason = "INTERNAL"


class Rpcs:
    """Makes gRPC handlers of plain coroutine functions."""

    def __init__(self, metrics: Metrics, options: RpcOptions, callers: Callers) -> None:
        self._metrics = metrics
        self._options = options
        self._callers = callers

    def change(self, options: RpcOptions) -> None:
        """Go by other options from now on."""
        self._options = options

    def unary(
        self,
        method: str,
        request_type: type[Request],
        behaviour: Callable[[Request, Call], Awaitable[Message]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of one request and one answer."""

        async def handle(raw: bytes, context: Context) -> bytes:
            call = _begin(method, context, self._callers)
            call.size_bytes = len(raw)
            try:
                check_size(raw, self._options.max_request_bytes)
                answer = await behaviour(parse(request_type, raw), call)
            except (Exception, asyncio.CancelledError) as error:
                await self._failed(call, context, error)
            _tell_deprecated(call, context)
            self._ended(call, grpc.StatusCode.OK, None)
            return answer.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(
        self,
        method: str,
        behaviour: Callable[[AsyncIterator[bytes], Context, Call], Awaitable[None]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of a stream of requests, as bytes, and a stream of answers."""

        async def handle(raw: AsyncIterator[bytes], context: Context) -> None:
            call = _begin(method, context, self._callers)
            try:
                await behaviour(raw, context, call)
            except (Exception, asyncio.CancelledError) as error:
                await self._failed(call, context, error)
            _tell_deprecated(call, context)
            self._ended(call, grpc.StatusCode.OK, None)

        return grpc.stream_stream_rpc_method_handler(handle)

    def answer_stream(
        self,
        method: str,
        request_type: type[Request],
        behaviour: Callable[[Request, Context, Call], Awaitable[None]],
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of one request and a stream of answers, as bytes."""

        async def handle(raw: bytes, context: Context) -> None:
            call = _begin(method, context, self._callers)
            call.size_bytes = len(raw)
            try:
                check_size(raw, self._options.max_request_bytes)
                await behaviour(parse(request_type, raw), context, call)
            except (Exception, asyncio.CancelledError) as error:
                await self._failed(call, context, error)
            self._ended(call, grpc.StatusCode.OK, None)

        return grpc.unary_stream_rpc_method_handler(handle)

    async def _failed(
        self, call: Call, context: Context, error: Exception | asyncio.CancelledError
    ) -> NoReturn:
        """Tell log and caller; raises, as `abort` does."""
        if isinstance(error, asyncio.CancelledError):
            self._ended(call, _why_cancelled(call), None)
            raise error
        shoal_error = as_shoal_error(error)
        self._ended(call, code_of(shoal_error), shoal_error)
        trailing = (
            (REQUEST_ID_KEY, call.request_id),
            (DETAILS_KEY, rich_status(shoal_error).SerializeToString()),
        )
        code, message = code_of(shoal_error), shoal_error.message
        try:
            await context.abort(code, message, trailing_metadata=trailing)
        except grpc.aio.InternalError:  # the connection went before the caller could be told
            raise asyncio.CancelledError from None
        raise AssertionError("abort returned")

    def _ended(self, call: Call, code: grpc.StatusCode, error: ShoalError | None) -> None:
        seconds = time.monotonic() - call.began_s
        self._metrics.requests.labels(call.method, code.name).inc()
        self._metrics.request_seconds.labels(call.method).observe(seconds)
        slow = seconds > self._options.slow_request_s and call.method not in _OPEN_ENDED
        if error is None and not slow and not self._options.log_requests:
            return
        fields = {
            "method": call.method,
            "code": code.name,
            "model": call.model[:_MODEL_CHARACTERS],
            "duration_ms": round(seconds * 1000, 2),
            "size_bytes": call.size_bytes,
        }
        if error is not None:
            level = log.error if code is grpc.StatusCode.INTERNAL else log.info
            level("request_failed", **fields, reason=error.reason, error=error.message)
        elif slow:
            log.warning("slow_request", **fields)
        else:
            log.info("request", **fields)


def _begin(method: str, context: Context, callers: Callers) -> Call:
    """Set a call up: its id, known to log and caller, and its deadline."""
    now_s = time.monotonic()
    left_s = context.time_remaining()
    metadata = context.invocation_metadata() or ()
    call_id = _request_id(metadata)
    request_id.set(call_id)
    context.set_trailing_metadata(((REQUEST_ID_KEY, call_id),))
    return Call(
        method=method,
        request_id=call_id,
        began_s=now_s,
        deadline_s=None if left_s is None else now_s + left_s,
        caller=callers.name(metadata, context.peer()),
    )


def _tell_deprecated(call: Call, context: Context) -> None:
    if call.deprecated:
        told = [(DEPRECATED_KEY, each) for each in islice(call.deprecated, _DEPRECATED_TOLD)]
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id), *told))


def _why_cancelled(call: Call) -> grpc.StatusCode:
    """Whether the caller left or its deadline passed."""
    is_late = has_passed(call.deadline_s, began_s=call.began_s, now_s=time.monotonic())
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED


def check_size(raw: bytes, limit: int) -> None:
    """Refuse what is too large before it is parsed, which could take seconds of the loop.

    Raises:
        InvalidInput: It is above `max_request_bytes`.
    """
    if len(raw) > limit:
        raise InvalidInput(
            "request",
            f"{len(raw)} bytes, max_request_bytes is {limit}",
            metadata={"limit": "max_request_bytes", "limit_value": limit, "value": len(raw)},
        )


def parse(request_type: type[Request], raw: bytes) -> Request:
    """Read a message off the wire.

    Raises:
        InvalidInput: It is not one, or a string in it is not UTF-8.
    """
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        name = request_type.DESCRIPTOR.name
        raise InvalidInput(
            "request", f"not a valid {name}: malformed, or a string that is not UTF-8"
        ) from error


def as_shoal_error(error: Exception) -> ShoalError:
    """What the caller may be told of `error`; what it may not goes to the log."""
    if isinstance(error, ShoalError):
        return error
    log.error("unexpected_error", exc_info=error)
    return InternalError("internal error; the server's log says more under this request id")


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return f"{_PROCESS}{next(_numbers):08x}"
