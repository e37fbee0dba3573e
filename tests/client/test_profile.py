"""Profiling models with both clients, over a real channel."""

from __future__ import annotations

import grpc
import pytest

from shoal.v1 import profile_pb2 as pb
from shoal_client import Client, OverloadedError, RetryPolicy
from shoal_client.errors import UnavailableError
from tests.client import fake as fakes
from tests.client.conftest import Connect
from tests.client.fake import FakeServer

PROFILE = pb.ModelProfile(model="m", version="1", cells=[pb.ProfileCell(items=4)])
ANSWERS = [
    pb.ProfileModelResponse(plan=pb.ProfilePlan(cells=2)),
    pb.ProfileModelResponse(cell=pb.ProfileCell(items=4)),
    pb.ProfileModelResponse(),  # as of a later server
    pb.ProfileModelResponse(skipped=pb.SkippedCell(items=8, reason="large")),
    pb.ProfileModelResponse(profile=PROFILE),
]


def test_what_is_wanted_reaches_the_server(client: Client, fake: FakeServer) -> None:
    """Every option; without any, the server chooses."""
    fake.profile_answers = ANSWERS
    client.profile_model(
        "m", batch_sizes=[1, 2], lengths=(8,), max_batch_tokens=64, runs=5, max_share=0.25
    )
    assert fake.calls[-1].request == pb.ProfileModelRequest(
        model="m", batch_sizes=[1, 2], lengths=[8], max_batch_tokens=64, runs=5, max_share=0.25
    )
    client.profile_model()
    assert fake.calls[-1].request == pb.ProfileModelRequest()


def test_progress_is_told_and_the_profile_returned(client: Client, fake: FakeServer) -> None:
    """Batches that are left out count, too."""
    fake.profile_answers = ANSWERS
    told: list[tuple[int, int]] = []
    profile = client.profile_model("m", progress=lambda done, total: told.append((done, total)))
    assert profile == PROFILE
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_it_takes_as_long_as_the_server_takes(client: Client, fake: FakeServer) -> None:
    """The client's own time-out is for other calls; one of its own holds."""
    fake.profile_answers = ANSWERS
    client.profile_model()
    assert fake.calls[-1].timeout_s is None
    client.profile_model(timeout_s=7)
    assert fake.calls[-1].timeout_s == pytest.approx(7, abs=1)


def test_a_refusal_is_told_at_once(connect: Connect, fake: FakeServer) -> None:
    """Whoever is second is not put into a queue by retries."""
    fake.fail("ProfileModel", fakes.overloaded())
    client = connect(retry=RetryPolicy(max_attempts=5))
    with pytest.raises(OverloadedError):
        client.profile_model()
    assert fake.methods() == ["ProfileModel"]


def test_an_end_without_a_profile_is_an_error(client: Client, fake: FakeServer) -> None:
    """And not an empty profile."""
    fake.profile_answers = ANSWERS[:-1]
    with pytest.raises(UnavailableError, match="ended the stream"):
        client.profile_model()


def test_leaving_ends_the_call(client: Client, fake: FakeServer) -> None:
    """An error of the caller's own leaves no sweep behind."""
    fake.profile_answers = ANSWERS[:2] * 1000

    def stop(done: int, _: int) -> None:
        if done:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        client.profile_model(progress=stop)
    assert fake.stream_ends.get(timeout=30) is False


def test_the_last_profile(client: Client, fake: FakeServer) -> None:
    """Of a model, and the refusal where there is none."""
    fake.profile_answers = ANSWERS
    assert client.get_profile("m") == PROFILE
    assert fake.calls[-1].request == pb.GetProfileRequest(model="m")
    fake.fail("GetProfile", fakes.status(grpc.StatusCode.FAILED_PRECONDITION))
    with pytest.raises(Exception, match="on demand"):
        client.get_profile("m")
