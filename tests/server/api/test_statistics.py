"""GetStatistics over a real channel: what was asked for is what is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import grpc
import pytest

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import statistics_pb2
from shoal_server.api.callers import key_name
from tests.running import RunningServer
from tests.tiny_model import TinyModel, make_tiny_model

from .calls import TIMEOUT_S, Connection, refusal, unharmed

_keys = itertools.count()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Two versions of a tiny model."""
    root = tmp_path_factory.mktemp("models")
    make_tiny_model(root, version="1")
    return make_tiny_model(root, version="2", seed=1)


@pytest.fixture(scope="module")
def running(model: TinyModel) -> Iterator[RunningServer]:
    with RunningServer(
        model_dir=model.root,
        default_model="tiny",
        caller_names=f"{key_name('the search key')}=search",
    ) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(running: RunningServer) -> Iterator[Connection]:
    with unharmed(running) as connection:
        yield connection


def statistics(connection: Connection, model: str = "") -> statistics_pb2.GetStatisticsResponse:
    request = statistics_pb2.GetStatisticsRequest(model=model)
    return connection.control.GetStatistics(request, timeout=TIMEOUT_S)


def since_start(connection: Connection, version: str) -> statistics_pb2.ModelTraffic:
    """Of one version of the tiny model; zeros where it was never used."""
    for each in statistics(connection).models:
        if (each.model, each.version) == ("tiny" if version else "", version):
            return each.since_start
    return statistics_pb2.ModelTraffic()


def usage(connection: Connection, caller: str) -> dict[str, statistics_pb2.UsageCounts]:
    """Of one caller, by model."""
    return {
        each.model: each.since_start
        for each in statistics(connection).usage
        if each.caller == caller
    }


def embed(connection: Connection, key: str, *texts: str, model: str = "") -> pb.EmbedResponse:
    """One request with an API key."""
    request = pb.EmbedRequest(texts=texts, model=model)
    metadata = (("authorization", f"Bearer {key}"),)
    return connection.embedding.Embed(request, timeout=TIMEOUT_S, metadata=metadata)


def new_key() -> str:
    """A key that nobody has called with."""
    return f"a key {next(_keys)}"


def test_requests_items_tokens_and_batches(tiny: Connection) -> None:
    """Each version's own, and as the answers themselves had it."""
    before = [since_start(tiny, version) for version in ("1", "2")]
    long = "red " * 100
    answers = [tiny.embed("red blue", long, model="tiny@1") for _ in range(3)]

    first, second = (since_start(tiny, version) for version in ("1", "2"))
    assert first.requests - before[0].requests == 3
    assert first.items - before[0].items == 6
    tokens = sum(sum(answer.token_counts) for answer in answers)
    assert first.tokens - before[0].tokens == tokens
    assert first.truncated - before[0].truncated == 3
    items = sum(size * count for size, count in first.batch_sizes.items())
    assert items == first.items
    assert first.batch_tokens == first.tokens
    assert first.running.ToNanoseconds() > 0
    assert second.requests == before[1].requests


def test_latencies(tiny: Connection) -> None:
    """Percentiles grow with their rank, and a part of a request is shorter than the whole."""
    tiny.embed("red blue", model="tiny@1")
    found = since_start(tiny, "1")
    for latency in (found.latency, found.queue, found.inference):
        ordered = [latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us, latency.max_us]
        assert ordered == sorted(ordered)
        assert 0 < latency.mean_us <= latency.max_us
    assert found.inference.max_us <= found.latency.max_us


def test_recent_is_part_of_all_time(tiny: Connection) -> None:
    """Both are told with the time that they cover."""
    tiny.embed("red blue", model="tiny@1")
    answer = statistics(tiny, "tiny@1")
    (found,) = answer.models
    assert 1 <= found.recent.requests <= found.since_start.requests
    recent_s = answer.recent.ToNanoseconds() / 1e9
    assert 0 < recent_s <= min(60, answer.since_start.ToNanoseconds() / 1e9)


def test_failures_are_counted_by_reason(tiny: Connection) -> None:
    """For the version that was meant, or for none where there is no such model."""
    before, unknown = since_start(tiny, "1").errors, since_start(tiny, "").errors
    refusal(lambda: tiny.embed("red", model="tiny@1", dimensions=999))
    refusal(lambda: tiny.embed("red", model="nobody"))
    after = since_start(tiny, "1").errors
    assert after["INVALID_INPUT"] - before["INVALID_INPUT"] == 1
    assert since_start(tiny, "").errors["MODEL_NOT_FOUND"] - unknown["MODEL_NOT_FOUND"] == 1


def test_requests_on_streams_count_like_others(tiny: Connection) -> None:
    """Those that fail, too, and for the stream's caller."""
    key = new_key()
    requests = [
        pb.EmbedStreamRequest(id="a", request=pb.EmbedRequest(texts=["red", "blue"])),
        pb.EmbedStreamRequest(id="b", request=pb.EmbedRequest(texts=["red"], dimensions=999)),
    ]
    metadata = (("authorization", f"Bearer {key}"),)
    stream = tiny.embedding.EmbedStream(iter(requests), timeout=TIMEOUT_S, metadata=metadata)
    assert len(list(stream)) == 2
    found = usage(tiny, key_name(key))["tiny"]
    assert (found.requests, found.failed, found.items, found.tokens) == (2, 1, 2, 2)


def test_usage_by_caller_and_model(tiny: Connection) -> None:
    """Over all versions of a model; without a key by the host."""
    key = new_key()
    embed(tiny, key, "red blue", model="tiny@1")
    embed(tiny, key, "red", "blue", model="tiny@2")
    refusal(lambda: embed(tiny, key, "red", model="nobody"))
    found = usage(tiny, key_name(key))
    assert found["tiny"] == statistics_pb2.UsageCounts(requests=2, items=3, tokens=4)
    assert found[""] == statistics_pb2.UsageCounts(requests=1, failed=1)
    tiny.embed("red")
    assert usage(tiny, "127.0.0.1")["tiny"].requests >= 1


def test_a_caller_goes_by_the_name_that_the_operator_gave_it(tiny: Connection) -> None:
    """And by that only."""
    embed(tiny, "the search key", "red")
    assert usage(tiny, "search")["tiny"].requests == 1
    assert usage(tiny, key_name("the search key")) == {}


def test_keys_are_told_to_nobody(tiny: Connection, running: RunningServer) -> None:
    """Neither in an answer nor in the log."""
    embed(tiny, "very-secret", "red")
    refusal(lambda: embed(tiny, "very-secret", "red", model="nobody"))
    assert "very-secret" not in str(statistics(tiny))
    assert "very-secret" not in "".join(running.output)


def test_one_model_of_many(tiny: Connection) -> None:
    """By name all of its versions, by version one; usage of that model only."""
    tiny.embed("red", model="tiny@1")
    tiny.embed("red", model="tiny@2")
    refusal(lambda: tiny.embed("red", model="nobody"))

    by_name = statistics(tiny, "tiny")
    assert [(each.model, each.version) for each in by_name.models] == [("tiny", "1"), ("tiny", "2")]
    assert {each.model for each in by_name.usage} == {"tiny"}
    assert [each.version for each in statistics(tiny, "tiny@2").models] == ["2"]


def test_an_unknown_model_is_not_found(tiny: Connection) -> None:
    """Told from one that is there and was not used."""
    found = refusal(lambda: statistics(tiny, "nobody"))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert refusal(lambda: statistics(tiny, "no/name")).code == grpc.StatusCode.INVALID_ARGUMENT


def test_a_model_that_was_not_used_has_none(tiny: Connection, model: TinyModel) -> None:
    """It exists, so it is no error."""
    make_tiny_model(model.root, "unused")
    assert list(statistics(tiny, "unused").models) == []


def test_tokenizing_is_not_embedding(tiny: Connection) -> None:
    """It is in no count here: nothing ran."""
    tiny.embed("red", model="tiny@2")
    before = since_start(tiny, "2").requests
    request = pb.TokenizeRequest(model="tiny@2", texts=["red"])
    tiny.embedding.Tokenize(request, timeout=TIMEOUT_S)
    assert since_start(tiny, "2").requests == before
