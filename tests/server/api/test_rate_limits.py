"""Rate limits over a real channel: whoever asks for too much is told so, others notice nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import grpc
import pytest

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import statistics_pb2
from shoal_server.api.callers import key_name
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model

from .calls import TIMEOUT_S, Connection, Refusal, refusal, refusal_of, unharmed

# So few a minute that none comes back while a test runs.
REQUESTS, TOKENS = 5, 40
A_REQUEST_S, A_TOKEN_S = 60 / REQUESTS, 60 / TOKENS
_keys = itertools.count()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = make_tiny_model(tmp_path_factory.mktemp("models"))
    with RunningServer(
        model_dir=model.root,
        default_model="tiny",
        rate_limit_requests_per_min=REQUESTS,
        caller_names=f"{key_name('by tokens')}=reader",
        rate_limit_overrides=f"reader=-/{TOKENS},127.0.0.1=-/-",
    ) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(running: RunningServer) -> Iterator[Connection]:
    with unharmed(running) as connection:
        yield connection


class Caller:
    """Somebody with a key of its own."""

    def __init__(self, connection: Connection, key: str = "") -> None:
        self._embedding = connection.embedding
        self.key = key or f"a key {next(_keys)}"
        self.metadata = (("authorization", f"Bearer {self.key}"),)

    def embed(self, *texts: str) -> pb.EmbedResponse:
        request = pb.EmbedRequest(texts=texts)
        return self._embedding.Embed(request, timeout=TIMEOUT_S, metadata=self.metadata)

    def refused(self, *texts: str) -> Refusal:
        return refusal(lambda: self.embed(*texts))


def test_requests_above_the_limit_are_refused(tiny: Connection, running: RunningServer) -> None:
    """With the time until the next one, the limit, the use and the caller; and counted."""
    limit = "rate_limit_requests_per_min"
    counted = running.metric("shoal_rejected_requests_total", limit=limit)
    caller = Caller(tiny)
    for _ in range(REQUESTS):
        caller.embed("red")
    found = caller.refused("red")
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert found.retry_s is not None
    assert 0 < found.retry_s <= A_REQUEST_S
    assert found.metadata == {
        "limit": limit,
        "limit_value": str(REQUESTS),
        "value": str(REQUESTS),
        "asked": "1",
        "caller": key_name(caller.key),
    }
    assert running.metric("shoal_rejected_requests_total", limit=limit) == counted + 1


def test_others_are_not_disturbed(tiny: Connection) -> None:
    """Each caller has what is its own."""
    greedy, modest = Caller(tiny), Caller(tiny)
    for _ in range(REQUESTS):
        greedy.embed("red")
    greedy.refused("red")
    assert len(modest.embed("red", "blue").token_counts) == 2


def test_of_many_at_once_as_many_as_may_are_served(tiny: Connection) -> None:
    """Every one is answered: with a vector, or with the refusal."""
    caller = Caller(tiny)
    request = pb.EmbedRequest(texts=["red"])
    calls = [
        tiny.embedding.Embed.future(request, timeout=TIMEOUT_S, metadata=caller.metadata)
        for _ in range(50)
    ]
    codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.OK) == REQUESTS
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 50 - REQUESTS


def test_on_a_stream_the_answer_says_so_and_the_stream_goes_on(tiny: Connection) -> None:
    """Its requests are its caller's like any others."""
    caller = Caller(tiny)
    request = pb.EmbedRequest(texts=["red"])
    requests = [pb.EmbedStreamRequest(id=str(n), request=request) for n in range(REQUESTS + 2)]
    stream = tiny.embedding.EmbedStream(iter(requests), timeout=TIMEOUT_S, metadata=caller.metadata)
    answers = list(stream)
    assert sorted(answer.id for answer in answers) == [each.id for each in requests]
    refused = [refusal_of(answer.error) for answer in answers if answer.HasField("error")]
    assert [each.reason for each in refused] == ["RATE_LIMITED"] * 2


def test_tokens_are_those_that_the_model_saw(tiny: Connection) -> None:
    """Not the estimate of a text's length, which here is far too high and cut to the limit."""
    reader = Caller(tiny, "by tokens")
    used = 0
    while used <= TOKENS - 16:  # what a text of the tiny model has at most
        used += sum(reader.embed("red " + "x" * 100).token_counts)
    found = reader.refused("red " * 16)
    assert found.metadata["limit"] == "rate_limit_tokens_per_min"
    assert found.metadata["caller"] == "reader"
    assert found.retry_s is not None
    assert 0 < found.retry_s <= 16 * A_TOKEN_S
    assert abs(int(found.metadata["value"]) - used) <= 1  # a token has been refilled, perhaps


def test_tokenizing_is_a_request_too(tiny: Connection) -> None:
    """The limit is not to be got round by it."""
    caller = Caller(tiny)
    request = pb.TokenizeRequest(texts=["red"])
    for _ in range(REQUESTS):
        tiny.embedding.Tokenize(request, timeout=TIMEOUT_S, metadata=caller.metadata)
    assert caller.refused("red").reason == "RATE_LIMITED"


def test_steering_is_not_limited(tiny: Connection) -> None:
    """Whoever is refused can still ask why."""
    caller = Caller(tiny)
    for _ in range(REQUESTS):
        caller.embed("red")
    caller.refused("red")
    request = statistics_pb2.GetStatisticsRequest()
    answer = tiny.control.GetStatistics(request, timeout=TIMEOUT_S, metadata=caller.metadata)
    (usage,) = (each for each in answer.usage if each.caller == key_name(caller.key))
    assert (usage.since_start.requests, usage.since_start.failed) == (REQUESTS + 1, 1)
