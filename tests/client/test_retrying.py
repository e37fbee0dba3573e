"""Deadlines, retries and errors of both clients, over a real channel; waits are faked."""

from __future__ import annotations

import math

import grpc
import pytest

from shoal_client import (
    Client,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RetryPolicy,
    ShoalError,
    UnauthenticatedError,
    UnimplementedError,
)
from tests.client import fake as fakes
from tests.client.conftest import Connect, FakeTime
from tests.client.fake import FakeServer


def test_overload_is_retried_after_what_the_server_said(
    client: Client, fake: FakeServer, time: FakeTime
) -> None:
    """Each wait is RetryInfo's delay and jitter on top of it, never less."""
    fake.fail("Embed", fakes.overloaded(2.0), fakes.overloaded(0.5))
    assert len(client.embed(["a"])) == 1
    # 0.5 of 0.1 s, then 0.5 of 0.2 s
    assert [pytest.approx(2.05), pytest.approx(0.6)] == time.waits_s


def test_unavailable_is_retried_with_growing_back_off(
    client: Client, fake: FakeServer, time: FakeTime
) -> None:
    """Without RetryInfo the ceiling of the wait doubles with each attempt."""
    fake.fail("Embed", *[fakes.UNAVAILABLE] * 4)
    client.embed(["a"])
    assert [pytest.approx(wait) for wait in (0.05, 0.1, 0.2, 0.4)] == time.waits_s


def test_call_that_the_server_cancelled_is_retried(client: Client, fake: FakeServer) -> None:
    """Nobody here cancelled it, so the server was going away."""
    fake.fail("Embed", fakes.status(grpc.StatusCode.CANCELLED))
    assert len(client.embed(["a"])) == 1


def test_attempts_are_bounded(connect: Connect, fake: FakeServer) -> None:
    """After max_attempts the last error is raised."""
    fake.fail("Embed", *[fakes.overloaded()] * 9)
    with pytest.raises(OverloadedError):
        connect(retry=RetryPolicy(max_attempts=3)).embed(["a"])
    assert fake.methods() == ["Embed"] * 3


def test_no_retry_that_would_miss_the_deadline(
    client: Client, fake: FakeServer, time: FakeTime
) -> None:
    """A wait that ends after the deadline is not begun: the error comes at once."""
    fake.fail("Embed", fakes.overloaded(10.0))
    with pytest.raises(OverloadedError) as raised:
        client.embed(["a"], timeout_s=5)
    assert raised.value.retry_after_s == 10.0
    assert not time.waits_s


def test_retries_share_the_deadline(client: Client, fake: FakeServer) -> None:
    """What was waited is taken off the next try's deadline."""
    fake.fail("Embed", fakes.overloaded(4.0))
    client.embed(["a"], timeout_s=10)
    first, second = [call.timeout_s for call in fake.calls if call.method == "Embed"]
    assert first is not None and second is not None
    assert second < 6.5 < first < 10.5  # grpc rounds timeouts up


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgumentError),
        (grpc.StatusCode.NOT_FOUND, ModelNotFoundError),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPreconditionError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceededError),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.UNAUTHENTICATED, UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDeniedError),
        (grpc.StatusCode.UNIMPLEMENTED, UnimplementedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.ABORTED, ShoalError),
    ],
)
def test_what_can_not_succeed_is_not_retried(
    client: Client, fake: FakeServer, code: grpc.StatusCode, expected: type[ShoalError]
) -> None:
    """Every other code has its class and is raised after one try."""
    fake.fail("Embed", fakes.status(code, "no"))
    with pytest.raises(ShoalError) as raised:
        client.embed(["a"])
    assert (type(raised.value), raised.value.code) == (expected, code)
    assert str(raised.value) == "no"
    assert fake.methods() == ["Embed"]


def test_failed_precondition_is_not_retried_even_with_retry_info(
    client: Client, fake: FakeServer
) -> None:
    """A remembered load failure says when it is forgotten, which is the caller's to use."""
    failure = fakes.status(
        grpc.StatusCode.FAILED_PRECONDITION, reason="MODEL_LOAD_FAILED", retry_after_s=5
    )
    fake.fail("Embed", failure)
    with pytest.raises(FailedPreconditionError) as raised:
        client.embed(["a"])
    assert (raised.value.reason, raised.value.retry_after_s) == ("MODEL_LOAD_FAILED", 5.0)


def test_deadline_ends_a_call_that_waits(client: Client, fake: FakeServer) -> None:
    """The deadline holds although the server never answers."""
    client.server_info()
    fake.hold()
    with pytest.raises(DeadlineExceededError):
        client.embed(["a"], timeout_s=0.05)


def test_deadline_during_a_retry_tells_why_it_was_retried(client: Client, fake: FakeServer) -> None:
    """The reason of the try before is kept, though the last one had no answer."""
    client.server_info()
    fake.fail("Embed", fakes.overloaded())
    fake.hold()
    with pytest.raises(DeadlineExceededError) as raised:
        client.embed(["a"], timeout_s=0.3)
    assert (raised.value.reason, raised.value.retry_after_s) == ("OVERLOADED", 0.001)
    assert str(raised.value) == "no answer within 0.3 s; the try before: on demand"


@pytest.mark.parametrize("timeout_s", [0, 0.001])
def test_tiny_timeout_is_named(client: Client, fake: FakeServer, timeout_s: float) -> None:
    """The error says how long was waited, so that a timeout in wrong units is seen."""
    client.server_info()
    fake.hold()
    with pytest.raises(DeadlineExceededError, match=f"no answer within {timeout_s:g} s"):
        client.embed(["a"], timeout_s=timeout_s)


def test_default_timeout_is_the_clients(connect: Connect, fake: FakeServer) -> None:
    """Calls that name no timeout have the client's; infinity, or ages, sends none."""
    connect(timeout_s=7).list_models()
    connect().list_models(timeout_s=math.inf)
    connect().list_models(timeout_s=1e300)
    limited, *unlimited = (call.timeout_s for call in fake.calls)
    assert limited is not None
    assert 6 < limited < 7.5  # grpc rounds timeouts up
    assert unlimited == [None, None]


def test_a_timeout_that_is_no_number_is_refused(connect: Connect, fake: FakeServer) -> None:
    """Of a call as of a client: nothing compares with it, so it would never end or begin."""
    with pytest.raises(InvalidArgumentError, match="timeout_s"):
        connect().list_models(timeout_s=math.nan)
    with pytest.raises(ValueError, match="timeout_s"):
        connect(timeout_s=math.nan)
    assert fake.calls == []


def test_request_id_is_sent_and_the_answered_one_returned(client: Client, fake: FakeServer) -> None:
    """The server's id of the call is in results and in errors."""
    assert client.embed(["a"], request_id="mine").request_id == "server-mine"
    assert fake.calls[-1].metadata["x-request-id"] == "mine"
    fake.fail("Embed", fakes.INTERNAL)
    with pytest.raises(InternalError) as raised:
        client.embed(["a"], request_id="mine")
    assert raised.value.request_id == "server-mine"


def test_request_id_is_made_when_none_is_given(client: Client, fake: FakeServer) -> None:
    """Also a call that never reached the server can be named."""
    client.embed(["a"])
    client.embed(["a"])
    sent = {call.metadata["x-request-id"] for call in fake.calls if call.method == "Embed"}
    assert len(sent) == 2


def test_limits_fall_back_to_the_documented_ones(client: Client, fake: FakeServer) -> None:
    """A server without GetServerInfo is taken to have the default limits."""
    fake.fail("GetServerInfo", fakes.status(grpc.StatusCode.UNIMPLEMENTED))
    fake.limits.texts_per_request = 5000
    client.embed(["a"] * 2500)
    sizes = {len(call.request.texts) for call in fake.calls if call.method == "Embed"}
    assert sizes == {2048, 452}


def test_part_that_fails_for_a_moment_is_retried_alone(client: Client, fake: FakeServer) -> None:
    """The other parts of a split call are not sent again."""
    fake.fail_requests(fakes.overloaded(), fakes.overloaded(), text="busy")
    texts = ["a"] * 150 + ["busy"] + ["a"] * 100
    assert len(texts) == len(client.embed(texts))
    assert fake.methods() == ["Embed"] * 5
