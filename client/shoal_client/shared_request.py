"""One request that carries the calls of several callers. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from shoal.v1.embed_pb2 import EmbedRequest
from shoal_client.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ShoalError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    twin,
)
from shoal_client.requests import new_request_id
from shoal_client.results import Embeddings, select
from shoal_client.retry import Deadline, out_of_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal_client.retry import Attempts

_INPUTS = ("texts", "tokens", "images")
_OPTIONS = {field.name for field in EmbedRequest.DESCRIPTOR.fields} - set(_INPUTS)
# What every caller of the same options would be told.
_EVERYBODYS = (
    FailedPreconditionError,
    ModelNotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)


class Call:
    """One caller's request, and the caller who waits; subclasses know how to reach it.

    Attributes:
        request: Inputs and options.
        deadline: The caller's.
        inputs: Their number.
        size_bytes: Of the request.
        shared: What it travels in; None before that.
        waits: Whether its caller is there and was told nothing yet.
        again: Whether it was sent before, in company, and had its turn.
        alone: Whether it has to travel alone, having failed in company.
    """

    __slots__ = ("again", "alone", "deadline", "inputs", "request", "shared", "size_bytes", "waits")

    def __init__(self, request: EmbedRequest, deadline: Deadline) -> None:
        self.request = request
        self.deadline = deadline
        self.inputs = len(request.texts) + len(request.tokens)
        self.size_bytes = request.ByteSize()
        self.shared: SharedRequest[Any] | None = None
        self.waits = True
        self.again = False
        self.alone = False

    def settle(self, outcome: Embeddings | Exception) -> None:
        """Tell the caller, if it waits."""
        if self.waits:
            self.waits = False
            self._deliver(outcome)

    def _deliver(self, outcome: Embeddings | Exception) -> None:
        """Hand the caller its result or its error."""
        raise NotImplementedError

    def out_of_time(self) -> DeadlineExceededError:
        """The error for the caller when its own deadline passes."""
        if self.shared is None:
            return out_of_time(self.deadline, new_request_id())
        error = out_of_time(self.deadline, self.shared.request_id)
        self.shared.attempts.explain(error)
        return error


C = TypeVar("C", bound=Call)


class SharedRequest(Generic[C]):
    """Calls of equal options, put together; their answer, or error, taken apart.

    Attributes:
        calls: In the order of their inputs.
        inputs: Of all of them.
        message: What is sent.
        latest: The call whose deadline is the request's: it cuts off no other.
        attempts: The tries of it.
        request_id: Sent along.
    """

    __slots__ = ("attempts", "calls", "inputs", "latest", "message", "request_id")

    def __init__(self, calls: Sequence[C], new_attempts: Callable[[Deadline], Attempts]) -> None:
        self.calls = calls
        self.inputs = sum(call.inputs for call in calls)
        self.message = calls[0].request if len(calls) == 1 else _put_together(calls)
        self.latest = max(calls, key=lambda call: call.deadline.at)
        self.attempts = new_attempts(self.latest.deadline)
        self.request_id = new_request_id()
        for call in calls:
            call.shared = self

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return not any(call.waits for call in self.calls)

    def answer(self, result: Embeddings) -> None:
        """Give each caller its rows."""
        if len(result) != self.inputs:
            self.fail(_wrong_rows(len(result), self.inputs, self.request_id))
            return
        start = 0
        for call in self.calls:
            stop = start + call.inputs
            if call.waits:
                call.settle(result if len(self.calls) == 1 else select(result, start, stop))
            start = stop

    def fail(self, error: Exception) -> None:
        """Give each caller the error."""
        for call in self.calls:
            call.settle(twin(error))

    def blame(self, error: ShoalError) -> Sequence[C]:
        """Give the error to those whose it is; returns the others, who are to go again.

        An error that names an input is that caller's, and the others go again together;
        one that can be about any of the inputs is nobody's yet, and all go alone. So do
        those whose mates failed twice: a call is sent three times at most.
        """
        if len(self.calls) == 1 or _is_everybodys(error):
            self.fail(error)
            return ()
        culprit = self._tell_culprit(error)
        others = [call for call in self.calls if call is not culprit]
        for call in others:
            call.alone = call.again or culprit is None
        return others

    def _tell_culprit(self, error: ShoalError) -> C | None:
        """Give the error to the call whose input it names; returns that call."""
        start = 0
        for call in self.calls:
            if error.input_index in range(start, start + call.inputs):
                error.shift_index(-start)
                call.settle(error)
                return call
            start += call.inputs
        return None


def _put_together(calls: Sequence[Call]) -> EmbedRequest:
    message = EmbedRequest()
    for call in calls:
        message.MergeFrom(call.request)  # the options are equal, the inputs are appended
    return message


def _is_everybodys(error: ShoalError) -> bool:
    if isinstance(error, OverloadedError):
        # Without RetryInfo it is gRPC's own refusal of a message that is too large.
        return error.retry_after_s is not None
    if isinstance(error, DeadlineExceededError):
        # The time that ended here was the latest caller's. With this reason the server
        # says that there is not enough of it, which could do for fewer inputs.
        return error.reason != "DEADLINE_EXCEEDED"
    if isinstance(error, InvalidArgumentError):
        return error.field in _OPTIONS
    return isinstance(error, _EVERYBODYS)


def _wrong_rows(rows: int, inputs: int, request_id: str) -> InternalError:
    return InternalError(
        f"the server answered {rows} rows to {inputs} inputs",
        code=grpc.StatusCode.INTERNAL,
        request_id=request_id,
    )
