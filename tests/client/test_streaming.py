"""`embed_iter` and `embed_chunks` of both clients, over a real channel."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from shoal_client import (
    Client,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    OverloadedError,
    RetryPolicy,
    UnavailableError,
)
from shoal_client.retry import Clock
from tests.client import fake as fakes
from tests.client.conftest import Connect
from tests.client.fake import FakeServer, vectors_of


@pytest.fixture
def client(connect: Connect) -> Client:
    """Of either kind, with a real clock, since streams wait for their server."""
    return connect(clock=Clock(), retry=RetryPolicy(initial_backoff_s=0.001))


def numbered(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def test_one_row_for_each_text_in_order(client: Client) -> None:
    """Whatever iterable goes in, one vector a text comes out, in order."""
    texts = numbered(1000)
    rows = list(client.embed_iter(text for text in texts))
    np.testing.assert_array_equal(vectors_of(texts), rows)


def test_answers_out_of_order_are_put_in_order(client: Client, fake: FakeServer) -> None:
    """The server may answer a later request first."""
    fake.stream_group = 4
    texts = numbered(80)
    rows = list(client.embed_iter(texts, chunk_size=5))
    np.testing.assert_array_equal(vectors_of(texts), rows)


def test_nothing_in_nothing_out(client: Client) -> None:
    """An empty iterable is no error: a job may have nothing to do."""
    assert list(client.embed_iter([])) == []


def test_chunks_carry_usage(client: Client) -> None:
    """A chunk is a result like that of `embed`, truncation counted from its first row."""
    texts = ["a", "x" * 201, "b"]
    chunks = list(client.embed_chunks(texts, chunk_size=2, request_id="job"))
    assert [(len(chunk), chunk.truncated) for chunk in chunks] == [(2, (1,)), (1, ())]
    assert {chunk.request_id for chunk in chunks} == {"job"}


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 20, 50])
def test_reading_ahead_is_bounded(client: Client, chunk_size: int) -> None:
    """The iterable is never read further ahead than `max_in_flight` texts."""
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"text {taken}"

    rows = client.embed_iter(endless(), chunk_size=chunk_size, max_in_flight=20)
    for yielded in range(100):
        next(rows)
        assert taken - yielded <= 20
    rows.close()


def test_lock_step_answers_each_text_before_the_next_is_read(client: Client) -> None:
    """With one text in flight a conversation is possible."""
    read: list[str] = []

    def conversation() -> Iterator[str]:
        for text in numbered(3):
            read.append(text)
            yield text

    for count, _ in enumerate(client.embed_iter(conversation(), chunk_size=1, max_in_flight=1), 1):
        assert len(read) == count


def test_chunks_respect_the_servers_limits(client: Client, fake: FakeServer) -> None:
    """No request of the stream has more texts or bytes than the server takes."""
    fake.limits.texts_per_request = 7
    fake.limits.bytes_per_request = 500
    texts = ["ä" * 50] * 30 + ["a"] * 30
    assert len(texts) == len(list(client.embed_iter(texts)))
    assert max(len(call.request.request.texts) for call in stream_requests(fake)) == 7


def stream_requests(fake: FakeServer) -> list[fakes.Call]:
    return [call for call in fake.calls if call.method == "StreamRequest"]


def test_overloaded_request_is_sent_again_on_the_stream(client: Client, fake: FakeServer) -> None:
    """One request's RetryInfo delays that request; order is kept."""
    fake.fail_requests(fakes.overloaded(), fakes.overloaded(), text="text 17")
    texts = numbered(40)
    rows = list(client.embed_iter(texts, chunk_size=4))
    np.testing.assert_array_equal(vectors_of(texts), rows)
    assert (
        len(stream_requests(fake)),
        [method for method in fake.methods() if method != "StreamRequest"],
    ) == (12, ["EmbedStream"])


def test_retries_on_the_stream_are_bounded(client: Client, fake: FakeServer) -> None:
    """A request that stays refused ends the job with the server's error."""
    fake.fail_requests(*[fakes.overloaded()] * 9)
    with pytest.raises(OverloadedError):
        list(client.embed_iter(["a"]))
    assert len(stream_requests(fake)) == 5


def test_refused_request_raises_with_the_callers_index(client: Client, fake: FakeServer) -> None:
    """Rows before the refused text still come; then its error, counted from the first text."""
    fake.fail_requests(fakes.invalid("texts[1]"), text="bad")
    texts = [*numbered(9), "bad", "more"]
    rows = client.embed_iter(texts, chunk_size=4)
    with pytest.raises(InvalidArgumentError, match=r"^texts\[9\]: ") as raised:
        list(rows)
    assert raised.value.field == "texts[9]"


def test_failed_run_is_not_retried(client: Client, fake: FakeServer) -> None:
    """An error answer that can not be retried is raised as its class."""
    fake.fail_requests(fakes.INTERNAL)
    with pytest.raises(InternalError):
        list(client.embed_iter(["a"]))
    assert len(stream_requests(fake)) == 1


def test_broken_stream_goes_on_where_it_was(client: Client, fake: FakeServer) -> None:
    """What was not answered is sent over a new stream; nothing is lost or doubled."""
    fake.answers_before_break.extend([3, 1, 2])
    texts = numbered(60)
    rows = list(client.embed_iter(texts, chunk_size=5))
    np.testing.assert_array_equal(vectors_of(texts), rows)
    assert fake.methods().count("EmbedStream") == 4


def test_stream_that_never_works_is_given_up(client: Client, fake: FakeServer) -> None:
    """Streams that break without any progress count as attempts."""
    fake.fail("EmbedStream", *[fakes.UNAVAILABLE] * 9)
    with pytest.raises(UnavailableError):
        list(client.embed_iter(["a"]))
    assert fake.methods() == ["EmbedStream"] * 5


def test_unavailable_answer_moves_to_a_new_stream(client: Client, fake: FakeServer) -> None:
    """A server that drains is left, with all that it has not answered."""
    fake.fail_requests(fakes.UNAVAILABLE, text="text 8")
    texts = numbered(20)
    rows = list(client.embed_iter(texts, chunk_size=4))
    np.testing.assert_array_equal(vectors_of(texts), rows)
    assert fake.methods().count("EmbedStream") == 2


def test_stream_refused_for_good_is_raised(client: Client, fake: FakeServer) -> None:
    """An error of the stream itself that can not be retried is raised as its class."""
    fake.fail("EmbedStream", fakes.status(grpc.StatusCode.FAILED_PRECONDITION))
    with pytest.raises(FailedPreconditionError) as raised:
        list(client.embed_iter(["a"], request_id="job"))
    assert raised.value.request_id == "server-job"


def test_closing_early_cancels_the_stream(client: Client, fake: FakeServer) -> None:
    """A caller that has enough stops the server's work."""
    rows = client.embed_iter(numbered(500), chunk_size=2, max_in_flight=10)
    next(rows)
    rows.close()
    fake.stream_ends.get(timeout=10)


def test_completed_job_ends_the_stream_in_good_order(client: Client, fake: FakeServer) -> None:
    """The server sees a stream that finished, not one that was cancelled."""
    list(client.embed_iter(["a"]))
    assert fake.stream_ends.get(timeout=10)


def test_error_of_the_iterable_is_the_callers(client: Client, fake: FakeServer) -> None:
    """What the iterable raises passes unchanged, even where it looks like a lost server."""

    def texts() -> Iterator[str]:
        yield from numbered(50)
        raise UnavailableError("the source is gone")

    with pytest.raises(UnavailableError, match="the source is gone"):
        list(client.embed_iter(texts()))
    assert fake.methods().count("EmbedStream") <= 1


def test_bad_text_is_named_by_its_place_in_the_iterable(client: Client) -> None:
    """A lone surrogate is found when its text is read."""
    with pytest.raises(InvalidArgumentError, match=r"^texts\[70\]: "):
        list(client.embed_iter([*numbered(70), "\udc80"]))


def test_timeout_is_for_each_request(client: Client, fake: FakeServer) -> None:
    """The stream may take as long as it takes; each request has the timeout."""
    list(client.embed_iter(["a"], timeout_s=7.5))
    assert stream_requests(fake)[0].request.timeout_ms == 7500
    assert next(call for call in fake.calls if call.method == "EmbedStream").timeout_s is None


@pytest.mark.parametrize("option", ["chunk_size", "max_in_flight"])
def test_number_that_makes_no_sense_is_refused(client: Client, option: str) -> None:
    """Nothing in flight would never end."""
    with pytest.raises(InvalidArgumentError, match=f"{option}: 0 is not at least 1"):
        client.embed_iter(["a"], **{option: 0})  # type: ignore[arg-type]


def test_wrong_option_is_refused_before_the_first_row(connect: Connect) -> None:
    """A wrong name is an error of the call, not of the iteration."""
    with pytest.raises(InvalidArgumentError, match="encoding"):
        connect().embed_iter(["a"], encoding="float64")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dimension"):
        connect().embed_iter(["a"], dimension=3)  # type: ignore[call-arg]
