"""Every limit is a setting, is kept, and is named when it is run into."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shoal.v1 import embed_pb2 as pb
from shoal_server.api.embed import _read_request
from tests.running import RunningServer
from tests.tiny_model import TinyModel, make_tiny_model

from .calls import (
    TIMEOUT_S,
    Connection,
    Refusal,
    assert_idle,
    kept_busy,
    refusal,
    unharmed,
)

TEXTS, TEXT_BYTES, REQUEST_BYTES, MESSAGE_BYTES = 8, 100, 4096, 8192
WAITING_ITEMS, INFLIGHT_BYTES = 120, 3000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny model that takes its time: it runs one item after the other."""
    return make_tiny_model(tmp_path_factory.mktemp("models"), serving={"max_batch_items": 1})


@pytest.fixture(scope="module")
def running(model: TinyModel) -> Iterator[RunningServer]:
    with RunningServer(
        model_dir=model.root,
        default_model="tiny",
        max_texts_per_request=TEXTS,
        max_text_bytes=TEXT_BYTES,
        max_request_bytes=REQUEST_BYTES,
        max_message_bytes=MESSAGE_BYTES,
        max_waiting_items=WAITING_ITEMS,
        max_inflight_bytes=INFLIGHT_BYTES,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(running: RunningServer) -> Iterator[Connection]:
    with unharmed(running) as connection:
        yield connection


def test_server_tells_the_limits_it_has(tiny: Connection) -> None:
    """So that a client can split what it sends."""
    limits = tiny.info().limits

    assert limits.texts_per_request == TEXTS
    assert limits.bytes_per_text == TEXT_BYTES
    assert limits.bytes_per_request == REQUEST_BYTES
    assert limits.message_bytes == MESSAGE_BYTES
    assert limits.items_in_flight == WAITING_ITEMS
    assert limits.bytes_in_flight == INFLIGHT_BYTES


@pytest.mark.parametrize(
    ("texts", "field", "limit", "value"),
    [
        (["red"] * (TEXTS + 1), "texts", "max_texts_per_request", TEXTS + 1),
        (["red", "x" * (TEXT_BYTES + 1)], "texts[1]", "max_text_bytes", TEXT_BYTES + 1),
        # 34 characters of 3 bytes
        (["€" * 34], "texts[0]", "max_text_bytes", 102),
    ],
    ids=["texts", "bytes", "bytes, not characters"],
)
def test_limit_is_named_with_its_value(
    tiny: Connection, texts: list[str], field: str, limit: str, value: int
) -> None:
    """INVALID_ARGUMENT that names setting, limit and value, for people and for programs."""
    found = refusal(lambda: tiny.embed(*texts))

    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.fields == (field,)
    assert found.metadata["limit"] == limit
    assert found.metadata["value"] == str(value)
    assert found.metadata["limit_value"] in found.message
    assert str(value) in found.message


def test_bytes_of_the_request_are_limited(tiny: Connection) -> None:
    """Whatever they are made of: here token ids."""
    request = pb.EmbedRequest(tokens=[pb.TokenIds(ids=[4] * REQUEST_BYTES)])

    found = refusal(lambda: tiny.embedding.Embed(request))

    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.metadata["limit"] == "max_request_bytes"
    assert found.metadata["value"] == str(request.ByteSize())


def test_inputs_are_counted_before_they_are_looked_at() -> None:
    """Two bytes on the wire are an input: millions of them must not become millions of objects."""
    message = pb.EmbedRequest.FromString(b"\x1a\x00" * 100_000)
    tracemalloc.start()
    try:
        request = _read_request(message, 200_000, None)
        assert len(request.tokens) == 100_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000


def test_what_reaches_the_limit_is_served(tiny: Connection) -> None:
    """A limit is the most that is allowed, not the least that is refused."""
    texts = ["red" + " " * (TEXT_BYTES - 3)] * TEXTS

    assert len(tiny.embed(*texts).token_counts) == TEXTS


def test_message_over_the_limit_is_refused_by_grpc(tiny: Connection) -> None:
    """The limit of gRPC itself answers RESOURCE_EXHAUSTED before anything is read."""
    found = refusal(lambda: tiny.embed("x" * (MESSAGE_BYTES + 1)))

    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MESSAGE_BYTES) in found.message


def test_message_over_the_limit_ends_its_stream_only(tiny: Connection) -> None:
    """The connection and its other calls go on."""
    good = pb.EmbedStreamRequest(id="good", request=pb.EmbedRequest(texts=["red"]))
    large = pb.EmbedStreamRequest(id="x" * (MESSAGE_BYTES + 1))

    found = refusal(lambda: list(tiny.embedding.EmbedStream(iter([good, large]), TIMEOUT_S)))

    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert tiny.embed("red").dimensions == 8
    assert_idle(tiny)


def refused(running: RunningServer, limit: str) -> float:
    return running.metric("shoal_rejected_requests_total", limit=limit)


def assert_overloaded(found: Refusal, limit: str, value: int) -> None:
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (found.reason, found.domain) == ("OVERLOADED", "shoal")
    assert found.metadata["limit"] == limit
    assert f"{limit} is {value}" in found.message
    assert found.retry_s is not None
    assert 0 < found.retry_s <= 30


def test_excess_is_refused_at_once_and_the_rest_succeeds(
    tiny: Connection, running: RunningServer
) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo for what is above the limit, and for that only."""
    before, sent = refused(running, "max_waiting_items"), 200
    with kept_busy(tiny) as busy:
        pending = [tiny.start("red") for _ in range(sent)]
        assert tiny.info().items_in_flight <= WAITING_ITEMS
        assert pending[-1].exception() is not None
        assert not busy[-1].done()

    failed = [future for future in pending if future.exception() is not None]
    for future in failed:
        assert_overloaded(refusal(future.result), "max_waiting_items", WAITING_ITEMS)
    served = [future for future in pending if future not in failed]
    assert len(served) > 0
    assert len(failed) >= sent - WAITING_ITEMS
    assert {future.result().vectors for future in served} == {tiny.embed("red").vectors}
    assert refused(running, "max_waiting_items") - before == len(failed)


def test_bytes_in_flight_are_limited(tiny: Connection) -> None:
    """A few large requests fill the server as many small ones do."""
    large = ["red" + " " * (TEXT_BYTES - 3)] * TEXTS
    with kept_busy(tiny):
        pending = [tiny.start(*large) for _ in range(10)]
        failed = next(each for each in reversed(pending) if each.exception() is not None)

    assert_overloaded(refusal(failed.result), "max_inflight_bytes", INFLIGHT_BYTES)


def test_model_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """One model that is flooded leaves room for the others."""
    for name in ("flooded", "quiet"):
        make_tiny_model(tmp_path, name, serving={"max_batch_items": 1})
    with (
        RunningServer(
            model_dir=tmp_path, default_model="quiet", max_waiting_items_per_model=60
        ) as running,
        unharmed(running) as connection,
        kept_busy(connection, "flooded"),
    ):
        flood = [connection.start("red", model="flooded") for _ in range(100)]
        failed = next(each for each in reversed(flood) if each.exception() is not None)

        assert connection.embed("red", model="quiet").model == "quiet"
        assert_overloaded(refusal(failed.result), "max_waiting_items_per_model", 60)
        for future in flood:
            future.cancel()


def test_request_above_the_limit_of_waiting_items_is_served_alone(tmp_path: Path) -> None:
    """What could never fit is let in while nothing else is there, not refused for ever."""
    model = make_tiny_model(tmp_path)
    with (
        RunningServer(model_dir=model.root, default_model="tiny", max_waiting_items=4) as running,
        unharmed(running) as connection,
    ):
        assert len(connection.embed(*["red"] * 16).token_counts) == 16
