"""Taking the outcome of a shared request apart: rows and blame, without I/O."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from shoal.v1 import embed_pb2
from shoal_client import (
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
)
from shoal_client.results import Embeddings, decode
from shoal_client.retry import Attempts, RetryPolicy
from shoal_client.shared_request import SharedRequest
from tests.client.test_lane import NotedCall


def shared_by(*inputs: int) -> SharedRequest[NotedCall]:
    """A request of calls with so many inputs each."""
    calls = [NotedCall(f"call {number}", inputs=count) for number, count in enumerate(inputs)]
    return SharedRequest(calls, lambda deadline: Attempts(RetryPolicy(), deadline=deadline))


def told(shared: SharedRequest[NotedCall]) -> list[Embeddings | Exception]:
    """What each caller was told, who was told one thing only."""
    assert all(len(call.told) == 1 for call in shared.calls)
    return [call.told[0] for call in shared.calls]


def answer(rows: int, truncated: tuple[int, ...] = ()) -> Embeddings:
    """int8 rows of two dimensions that can be told apart."""
    response = embed_pb2.EmbedResponse(
        model="m",
        version="3",
        vectors=np.arange(rows * 2, dtype=np.int8).tobytes(),
        dimensions=2,
        encoding=embed_pb2.VECTOR_ENCODING_INT8,
        scales=range(rows),
        token_counts=range(10, 10 + rows),
        truncated=truncated,
        timings=embed_pb2.Timings(total_us=77, batch_size=rows),
    )
    return decode(response, "id")


def test_message_has_all_inputs_in_order() -> None:
    """And the options once, for they are equal."""
    message = shared_by(1, 2).message
    assert list(message.texts) == ["call 0", "call 1", "call 1"]
    assert message.encoding == embed_pb2.VECTOR_ENCODING_FLOAT32


def test_each_caller_gets_all_that_belongs_to_its_rows() -> None:
    """Rows, scales, token counts, and truncation counted from its own first input."""
    shared = shared_by(1, 3, 2)
    shared.answer(answer(6, truncated=(0, 2, 3, 5)))
    first, second, third = told(shared)
    assert isinstance(first, Embeddings)
    assert isinstance(second, Embeddings)
    assert isinstance(third, Embeddings)
    np.testing.assert_array_equal([[2, 3], [4, 5], [6, 7]], second.vectors)
    assert second.scales is not None
    assert second.scales.tolist() == [1, 2, 3]
    assert (first.token_counts, second.token_counts) == ((10,), (11, 12, 13))
    assert (first.truncated, second.truncated, third.truncated) == ((0,), (1, 2), (1,))
    assert {each.timings.total_us for each in (first, second, third)} == {77}
    assert (third.model, third.version, third.request_id) == ("m", "3", "id")


def test_result_keeps_no_others_in_memory() -> None:
    """A caller who keeps its row does not keep the answer of all."""
    shared = shared_by(1, 1)
    shared.answer(answer(2))
    for result in told(shared):
        assert isinstance(result, Embeddings)
        assert result.vectors.base is None


def test_answer_with_rows_missing_is_an_error_for_all() -> None:
    """Rather than anybody's row in another's place."""
    shared = shared_by(1, 2)
    shared.answer(answer(2))
    assert [type(outcome) for outcome in told(shared)] == [InternalError] * 2


def test_error_that_names_an_input_is_its_callers() -> None:
    """Counted from that caller's first input; the others go again together."""
    shared = shared_by(2, 3, 1)
    error = InvalidArgumentError("texts[3]: too long", field="texts[3]")
    others = shared.blame(error)
    assert shared.calls[1].told == [error]
    assert (error.field, error.message) == ("texts[1]", "texts[1]: too long")
    assert others == [shared.calls[0], shared.calls[2]]
    assert not any(call.alone for call in others)


def test_second_failure_in_company_is_the_last() -> None:
    """However many bad inputs come together, a good one is sent three times at most."""
    shared = shared_by(1, 1, 1)
    shared.calls[1].again = True
    others = shared.blame(InvalidArgumentError("texts[0]: too long", field="texts[0]"))
    assert [call.alone for call in others] == [True, False]


@pytest.mark.parametrize(
    "error",
    [
        InternalError("not finite"),
        InvalidArgumentError("too many bytes", field="request"),
        InvalidArgumentError("nobody's", field="texts[9]"),
        OverloadedError("message too large"),
        DeadlineExceededError("can not be met", reason="DEADLINE_EXCEEDED"),
        ShoalError("?"),
    ],
    ids=str,
)
def test_error_that_may_be_anybodys_lets_each_go_alone(error: ShoalError) -> None:
    """Nobody is told before it is known whose it is."""
    shared = shared_by(1, 1)
    assert shared.blame(error) == shared.calls
    assert [(call.told, call.alone) for call in shared.calls] == [([], True)] * 2


@pytest.mark.parametrize(
    "error",
    [
        DeadlineExceededError("no answer within 5 s", reason="OVERLOADED"),
        FailedPreconditionError("not loadable"),
        InvalidArgumentError("dimensions: 999 is above 384", field="dimensions"),
        ModelNotFoundError("no such model"),
        OverloadedError("full", retry_after_s=3.0),
        PermissionDeniedError("not allowed"),
        UnauthenticatedError("no token"),
        UnavailableError("gone"),
        UnimplementedError("no such call"),
    ],
    ids=str,
)
def test_error_that_all_would_get_is_told_all(error: ShoalError) -> None:
    """Once each, as an exception of one's own, with all that it carries."""
    error.__cause__ = grpc.RpcError()
    shared = shared_by(1, 1)
    assert shared.blame(error) == ()
    first, second = told(shared)
    assert first is not second
    for outcome in (first, second):
        assert isinstance(outcome, type(error))
        assert (vars(outcome), outcome.__cause__) == (vars(error), error.__cause__)


def test_error_of_a_lone_call_is_its_own() -> None:
    """There is no one else it could be."""
    shared = shared_by(2)
    assert shared.blame(InternalError("not finite")) == ()
    assert isinstance(told(shared)[0], InternalError)


def test_caller_who_left_is_told_nothing() -> None:
    """Its result is dropped; the others get theirs."""
    shared = shared_by(1, 1)
    shared.calls[0].waits = False
    shared.answer(answer(2))
    assert [len(call.told) for call in shared.calls] == [0, 1]
    assert shared.is_abandoned
