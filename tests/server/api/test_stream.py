"""EmbedStream: pipelined requests, each answered for itself, whatever the others do."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from shoal.v1 import embed_pb2 as pb
from tests.running import RunningServer
from tests.tiny_model import TinyModel, make_tiny_model

from .calls import (
    KNOWN_TEXT,
    SLOW,
    TIMEOUT_S,
    Connection,
    assert_idle,
    eventually,
    refusal,
    refusal_of,
    rows,
    unharmed,
)

STREAM = "/shoal.v1.EmbedService/EmbedStream"
IN_FLIGHT = 4


@pytest.fixture(scope="module")
def running(model: TinyModel) -> Iterator[RunningServer]:
    with RunningServer(
        model_dir=model.root, default_model="tiny", cpu_slots=2, max_stream_requests=IN_FLIGHT
    ) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(running: RunningServer) -> Iterator[Connection]:
    with unharmed(running) as connection:
        yield connection


def one(
    identifier: str, *texts: str, timeout_ms: int | None = None, **fields: Any
) -> pb.EmbedStreamRequest:
    return pb.EmbedStreamRequest(
        id=identifier, request=pb.EmbedRequest(texts=texts, **fields), timeout_ms=timeout_ms
    )


class Sender:
    """The sending half of a stream, in a test's hands."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[pb.EmbedStreamRequest | None] = queue.SimpleQueue()

    def send(self, *requests: pb.EmbedStreamRequest) -> None:
        for request in requests:
            self._queue.put(request)

    def close(self) -> None:
        """Nothing more comes; the other half stays open."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[pb.EmbedStreamRequest]:
        return iter(self._queue.get, None)


def answers(
    connection: Connection, *requests: pb.EmbedStreamRequest
) -> list[pb.EmbedStreamResponse]:
    """Everything a stream of `requests` is answered with, in order of arrival."""
    return list(connection.embedding.EmbedStream(iter(requests), timeout=TIMEOUT_S))


def test_answers_carry_their_requests_id(tiny: Connection, model: TinyModel) -> None:
    """Every request is answered once, under its id, with its own vectors."""
    words = ["red", "blue", "green violet", "orange yellow red", "foo"] * 20
    sent = [one(str(index), word, "red") for index, word in enumerate(words)]

    found = answers(tiny, *sent)

    assert sorted(each.id for each in found) == sorted(each.id for each in sent)
    for each in found:
        expected = [model.vector(words[int(each.id)]), model.vector("red")]
        np.testing.assert_allclose(rows(each.response), expected, atol=1e-6)


def test_answers_come_when_they_are_done(tiny: Connection) -> None:
    """A request that needs no run overtakes one that does, whatever their order."""
    found = answers(tiny, one("runs", SLOW), one("is refused", "red", dimensions=0))

    assert [each.id for each in found] == ["is refused", "runs"]


def test_bad_request_is_an_error_in_its_own_answer(tiny: Connection, model: TinyModel) -> None:
    """Code, message and details are those of a unary call; the stream goes on."""
    bad = {
        "empty": (one("empty"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", ("texts",)),
        "model": (
            one("model", "x", model="absent"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", (),
        ),
        "nan": (one("nan", "red nan"), grpc.StatusCode.INTERNAL, "INFERENCE_FAILED", ()),
        "images": (
            pb.EmbedStreamRequest(id="images", request=pb.EmbedRequest(images=[b"x"])),
            grpc.StatusCode.FAILED_PRECONDITION, "FAILED_PRECONDITION", (),
        ),
        "late": (
            one("late", "red", timeout_ms=0),
            grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", (),
        ),
        "": (
            pb.EmbedStreamRequest(id="x" * 129), grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_INPUT", ("id",),
        ),
    }  # fmt: skip

    found = answers(
        tiny, one("first", "red"), *(each[0] for each in bad.values()), one("last", "blue")
    )

    by_id = {each.id: each for each in found}
    assert sorted(by_id) == sorted([*bad, "first", "last"])
    for identifier, (_, code, reason, fields) in bad.items():
        error = refusal_of(by_id[identifier].error)
        assert (error.code, error.reason, error.domain) == (code, reason, "shoal")
        assert error.fields == fields
        assert error.message
    for identifier, word in (("first", "red"), ("last", "blue")):
        np.testing.assert_allclose(
            rows(by_id[identifier].response), [model.vector(word)], atol=1e-6
        )


def test_error_in_the_stream_is_that_of_a_unary_call(tiny: Connection) -> None:
    """The same request fails the same way through both faces."""
    request = pb.EmbedRequest(texts=["red"], dimensions=9)

    unary = refusal(lambda: tiny.embedding.Embed(request))
    (streamed,) = answers(tiny, pb.EmbedStreamRequest(id="x", request=request))

    assert refusal_of(streamed.error) == unary


def test_garbage_is_an_error_in_its_own_answer(tiny: Connection) -> None:
    """What is no message has no id to answer under, and does not end the stream."""
    messages = [b"\xff" * 9, b"\x0a\x02\xc3\x28", one("good", "red").SerializeToString()]
    call: grpc.StreamStreamMultiCallable[bytes, pb.EmbedStreamResponse]
    call = tiny.channel.stream_stream(STREAM, None, pb.EmbedStreamResponse.FromString)

    found = {each.id: each for each in call(iter(messages), timeout=TIMEOUT_S)}

    assert set(found) == {"", "good"}
    assert refusal_of(found[""].error).code is grpc.StatusCode.INVALID_ARGUMENT
    assert found["good"].response.dimensions == 8


def test_empty_stream_ends_well(tiny: Connection) -> None:
    """No request, no answer, no error."""
    assert answers(tiny) == []


def test_open_stream_answers_before_it_is_closed(tiny: Connection) -> None:
    """An answer waits neither for more requests nor for the end of them."""
    sender = Sender()
    stream = tiny.embedding.EmbedStream(iter(sender), timeout=TIMEOUT_S)
    for identifier in ("a", "b"):
        sender.send(one(identifier, "red"))
        assert next(stream).id == identifier
    sender.close()
    assert list(stream) == []


def test_no_more_than_the_limit_is_in_flight(tiny: Connection) -> None:
    """However many are sent, the server works on so many at once."""
    sent = [one(str(number), "slow" if number % 5 else "red") for number in range(40)]

    in_flight = [
        tiny.info().requests_in_flight
        for _ in tiny.embedding.EmbedStream(iter(sent), timeout=TIMEOUT_S)
    ]

    assert len(in_flight) == len(sent)
    # The one that was answered may have been followed already.
    assert 1 < max(in_flight) <= IN_FLIGHT


def test_sender_is_held_back(tiny: Connection) -> None:
    """While there is no room the server does not read, and HTTP/2 tells its sender."""
    sent: list[int] = []
    count = 200

    def many() -> Iterator[pb.EmbedStreamRequest]:
        yield from (one(f"slow {number}", SLOW) for number in range(IN_FLIGHT))
        for number in range(count):
            sent.append(number)
            # Together much more than the windows hold; refused as soon as they are read.
            yield pb.EmbedStreamRequest(request=pb.EmbedRequest(images=[b"x" * 100_000]))

    stream = tiny.embedding.EmbedStream(many(), timeout=TIMEOUT_S)
    first = next(stream)
    sent_meanwhile = len(sent)

    assert first.id.startswith("slow")
    assert sent_meanwhile < count / 2
    assert len(list(stream)) == IN_FLIGHT + count - 1


def test_answers_nobody_reads_hold_the_server_back(
    tiny: Connection, running: RunningServer
) -> None:
    """A caller that sends and never reads costs the limit, no more, and goes unharmed."""
    before = running.metric("shoal_items_total")
    many = (one(str(number), *["red"] * 2000, dimensions=8) for number in range(500))
    with Connection(running.address) as lazy:
        stream = lazy.embedding.EmbedStream(many, timeout=TIMEOUT_S)
        next(stream)
        # What the windows hold gets done, then nothing more.
        eventually(lambda: running.metric("shoal_items_total") > before, "a first answer")
        assert tiny.embed(KNOWN_TEXT).dimensions == 8
        assert running.metric("shoal_items_total") - before < 500 * 2000

    assert_idle(tiny)


def test_own_timeout_ends_one_request_only(tiny: Connection, model: TinyModel) -> None:
    """timeout_ms counts from when the request is read; the stream outlives it."""
    found = answers(tiny, one("slow", SLOW), one("late", SLOW, timeout_ms=50), one("other", "red"))

    by_id = {each.id: each for each in found}
    assert refusal_of(by_id["late"].error).code is grpc.StatusCode.DEADLINE_EXCEEDED
    np.testing.assert_allclose(rows(by_id["other"].response), [model.vector("red")], atol=1e-6)


def test_deadline_in_the_past_costs_no_device_time(
    tiny: Connection, running: RunningServer, model: TinyModel
) -> None:
    """A request that is too late when it comes is answered without a run."""
    other = make_tiny_model(model.root, "used-once").name
    tiny.load(other)

    (found,) = answers(tiny, one("late", "red", model=other, timeout_ms=0))

    assert refusal_of(found.error).reason == "DEADLINE_EXCEEDED"
    tiny.embed("red", model=other)
    assert running.metric("shoal_batch_items_sum", model=other) == 1


def test_streams_deadline_ends_it_and_all_in_it(tiny: Connection) -> None:
    """The deadline of the stream is that of every request in it."""
    sender = Sender()
    sender.send(*(one(str(number), SLOW) for number in range(8)))

    found = refusal(lambda: list(tiny.embedding.EmbedStream(iter(sender), timeout=0.3)))

    sender.close()
    assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_idle(tiny)


def test_connection_dropped_in_the_middle(tiny: Connection, running: RunningServer) -> None:
    """What a caller that is gone had in flight is given up."""
    sender = Sender()
    with Connection(running.address) as doomed:
        stream = doomed.embedding.EmbedStream(iter(sender), timeout=TIMEOUT_S)
        sender.send(one("done", "red"), *(one(str(number), SLOW) for number in range(8)))
        assert next(stream).id == "done"
        tiny.wait_in_flight(IN_FLIGHT)

    assert refusal(lambda: next(stream)).code is grpc.StatusCode.CANCELLED
    sender.close()
    assert_idle(tiny)


def test_cancelled_stream_is_given_up(tiny: Connection) -> None:
    """Cancelling works as leaving does, with the connection still there."""
    sender = Sender()
    stream = tiny.embedding.EmbedStream(iter(sender), timeout=TIMEOUT_S)
    sender.send(*(one(str(number), SLOW) for number in range(8)))
    tiny.wait_in_flight(IN_FLIGHT)

    stream.cancel()

    sender.close()
    assert_idle(tiny)


def test_half_closed_stream_is_answered_in_full(tiny: Connection) -> None:
    """A caller that said all it had to say still gets every answer."""
    sender = Sender()
    stream = tiny.embedding.EmbedStream(iter(sender), timeout=TIMEOUT_S)
    sender.send(*(one(str(number), "slow") for number in range(12)))
    sender.close()

    assert sorted(int(each.id) for each in stream) == [*range(12)]
    assert stream.code() is grpc.StatusCode.OK
