"""The order, number and retries of a bulk job's requests, without a stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from shoal.v1.embed_pb2 import (
    EmbedRequest,
    EmbedResponse,
    EmbedStreamRequest,
    EmbedStreamResponse,
    VectorEncoding,
)
from shoal_client import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    OverloadedError,
    RetryPolicy,
    UnavailableError,
)
from shoal_client.pipeline import Pipeline
from tests.client import fake as fakes


def make_pipeline(*, timeout_s: float = 10, max_inputs: int = 1000) -> Pipeline:
    return Pipeline(
        policy=RetryPolicy(max_attempts=3, initial_backoff_s=0.5),
        timeout_s=timeout_s,
        max_inputs=max_inputs,
        random=lambda: 0.0,
    )


def request(texts: int = 1) -> EmbedRequest:
    return EmbedRequest(texts=["a"] * texts)


def answer(sent: EmbedStreamRequest) -> EmbedStreamResponse:
    """One row a text, whose only number is the request's."""
    rows = len(sent.request.texts)
    return EmbedStreamResponse(
        id=sent.id,
        response=EmbedResponse(
            vectors=np.full(rows, float(sent.id), "<f4").tobytes(),
            dimensions=1,
            encoding=VectorEncoding.VECTOR_ENCODING_FLOAT32,
        ),
    )


def refuse(sent: EmbedStreamRequest, status: status_pb2.Status) -> EmbedStreamResponse:
    return EmbedStreamResponse(id=sent.id, error=status)


@given(st.permutations(range(8)))
def test_any_order_of_answers_gives_the_order_of_requests(order: list[int]) -> None:
    """Results leave as soon as all before them have left, and not sooner."""
    pipeline = make_pipeline()
    sent = [pipeline.submit(request(), now=0) for _ in order]
    taken: list[float] = []
    answered: set[int] = set()
    for number in order:
        pipeline.resolve(answer(sent[number]), now=1)
        answered.add(number)
        taken += [float(result[0][0]) for result in pipeline.take_ready()]
        complete = next(index for index in range(9) if index not in answered)
        assert taken == list(range(complete))
    assert pipeline.is_idle


def test_room_is_counted_in_inputs_until_taken() -> None:
    """An answer that waits for one before it still takes room."""
    pipeline = make_pipeline(max_inputs=5)
    first = pipeline.submit(request(3), now=0)
    assert pipeline.has_room(2)
    assert not pipeline.has_room(3)
    second = pipeline.submit(request(2), now=0)
    pipeline.resolve(answer(second), now=0)
    assert pipeline.take_ready() == []
    assert not pipeline.has_room(1)
    pipeline.resolve(answer(first), now=0)
    assert [len(result) for result in pipeline.take_ready()] == [3, 2]
    assert pipeline.has_room(5)


def test_ids_are_unique_and_timeouts_set() -> None:
    """Each request can be told from the others and has its own time."""
    pipeline = make_pipeline(timeout_s=2.5)
    sent = [pipeline.submit(request(), now=0) for _ in range(3)]
    assert len({message.id for message in sent}) == 3
    assert {message.timeout_ms for message in sent} == {2500}


def test_no_timeout_is_left_unset() -> None:
    """Infinity is no limit, and nothing is ever late."""
    pipeline = make_pipeline(timeout_s=math.inf)
    assert not pipeline.submit(request(), now=0).HasField("timeout_ms")
    assert pipeline.wait_s(now=0) is None


def test_a_timeout_that_a_message_can_not_hold_is_left_to_the_client() -> None:
    """More than 32 bits of milliseconds are no limit for the server; the client keeps it."""
    pipeline = make_pipeline(timeout_s=1e7)
    assert not pipeline.submit(request(), now=0).HasField("timeout_ms")
    assert pipeline.wait_s(now=0) == pytest.approx(1e7, rel=1e-3)


def test_overloaded_request_becomes_due_after_retry_info() -> None:
    """It is sent again when RetryInfo says, with what is left of its time."""
    pipeline = make_pipeline(timeout_s=10)
    sent = pipeline.submit(request(), now=0)
    pipeline.resolve(refuse(sent, fakes.overloaded(4)), now=1)
    assert pipeline.wait_s(now=1) == 4
    assert pipeline.due(now=4.9) == []
    (again,) = pipeline.due(now=5)
    assert (again.id, again.timeout_ms) == (sent.id, 5000)
    assert pipeline.due(now=5) == []


def test_retries_of_a_request_are_bounded() -> None:
    """Attempts are counted for each request alone."""
    pipeline = make_pipeline()
    sent = pipeline.submit(request(), now=0)
    other = pipeline.submit(request(), now=0)
    for _ in range(2):
        pipeline.resolve(refuse(sent, fakes.overloaded(0.1)), now=0)
        pipeline.resolve(refuse(other, fakes.overloaded(0.1)), now=0)
        assert len(pipeline.due(now=1)) == 2
    with pytest.raises(OverloadedError):
        pipeline.resolve(refuse(sent, fakes.overloaded(0.1)), now=0)


def test_refusal_names_the_input_from_the_start_of_the_job() -> None:
    """Inputs of earlier requests are added to the index."""
    pipeline = make_pipeline()
    pipeline.submit(request(7), now=0)
    sent = pipeline.submit(request(2), now=0)
    with pytest.raises(InvalidArgumentError, match=r"texts\[8\]"):
        pipeline.resolve(refuse(sent, fakes.invalid("texts[1]")), now=0)


def test_new_stream_gets_what_the_old_one_left() -> None:
    """Neither what was answered nor what backs off is sent with a new stream."""
    pipeline = make_pipeline()
    sent = [pipeline.submit(request(), now=0) for _ in range(4)]
    pipeline.resolve(answer(sent[1]), now=0)
    pipeline.resolve(refuse(sent[2], fakes.overloaded(5)), now=0)
    with pytest.raises(UnavailableError):
        pipeline.resolve(refuse(sent[3], fakes.UNAVAILABLE), now=0)
    assert pipeline.unanswered() == [sent[0], sent[3]]


def test_silent_server_is_given_up() -> None:
    """No answer at all within the timeout and some grace is an error."""
    pipeline = make_pipeline(timeout_s=10)
    pipeline.submit(request(), now=0)
    assert pipeline.wait_s(now=0) == 15
    with pytest.raises(DeadlineExceededError, match="nothing for 15 s"):
        pipeline.check_silence()


def test_waiting_for_a_back_off_is_not_silence() -> None:
    """When a wait ends a little early nothing is wrong."""
    pipeline = make_pipeline()
    sent = pipeline.submit(request(), now=0)
    pipeline.resolve(refuse(sent, fakes.overloaded(4)), now=0)
    pipeline.check_silence()


def test_answer_to_nothing_is_an_error() -> None:
    """A server that makes up ids is not trusted with an order."""
    with pytest.raises(InternalError, match="'7'"):
        make_pipeline().resolve(EmbedStreamResponse(id="7"), now=0)
