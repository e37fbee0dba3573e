"""Calls of one client that share requests: both clients, over a real channel."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2

from shoal.v1 import embed_pb2
from shoal_client import (
    AsyncClient,
    Client,
    Coalescing,
    DeadlineExceededError,
    Embeddings,
    InternalError,
    InvalidArgumentError,
    ModelNotFoundError,
    UnavailableError,
)
from shoal_client.coalescing import Lane
from shoal_client.retry import Clock
from tests.client import fake as fakes
from tests.client.conftest import Connect, FakeTime
from tests.client.fake import FakeServer, vectors_of

# A call waits until the one before it is answered, so that tests decide who shares.
ONE_AT_A_TIME = Coalescing(requests_in_flight=1, max_wait_s=math.inf)


class Crowd:
    """Threads that call a client, one after the other, and wait together."""

    def __init__(self, arrivals: SimpleQueue[None]) -> None:
        self._arrivals = arrivals
        self._threads = ThreadPoolExecutor(64, "caller")

    def embed(self, client: Client, texts: list[str], **options: Any) -> Future[Embeddings]:
        """Have a thread call; returns when the call is in its lane."""
        future = self._threads.submit(client.embed, texts, **options)
        self._arrivals.get(timeout=10)
        return future

    def close(self) -> None:
        self._threads.shutdown()


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch, fake: FakeServer) -> Iterator[Crowd]:
    arrivals: SimpleQueue[None] = SimpleQueue()
    add = Lane.add

    def add_and_tell(lane: Any, call: Any) -> None:
        add(lane, call)
        arrivals.put(None)

    monkeypatch.setattr(Lane, "add", add_and_tell)
    crowd = Crowd(arrivals)
    yield crowd
    fake.release()
    crowd.close()


@pytest.fixture
def client(connect: Connect) -> Client:
    """A client of either kind whose calls share requests."""
    return connect(coalesce=ONE_AT_A_TIME)


def hold_first(crowd: Crowd, client: Client, fake: FakeServer) -> Future[Embeddings]:
    """Send a call that is not answered until `release`, so that others have to wait."""
    fake.hold(text="first")
    first = crowd.embed(client, ["first"])
    fake.held.get(timeout=10)
    return first


def requests(fake: FakeServer) -> list[list[str]]:
    """The texts of each Embed request, in order, but for the first."""
    sent = [list(call.request.texts) for call in fake.calls if call.method == "Embed"]
    return [texts for texts in sent if texts != ["first"]]


def refuse(text: str, code: grpc.StatusCode) -> fakes.Rule:
    """Fail requests with this text; INVALID_ARGUMENT names it."""

    def rule(request: embed_pb2.EmbedRequest) -> status_pb2.Status | None:
        if text not in request.texts:
            return None
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return fakes.invalid(f"texts[{list(request.texts).index(text)}]")
        return fakes.status(code, reason="INFERENCE_FAILED")

    return rule


def test_nothing_is_shared_by_default(connect: Connect, fake: FakeServer) -> None:
    """Each call has a request of its own, and all are on their way together."""
    client = connect()
    fake.hold(until=8)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(client.embed, [[str(number)] for number in range(8)]))
    assert sorted(requests(fake)) == [[str(number)] for number in range(8)]


def test_idle_client_sends_at_once(client: Client, fake: FakeServer) -> None:
    """A lone caller's calls neither wait (which here were for ever) nor change."""
    for text in "abc":
        np.testing.assert_array_equal(vectors_of([text]), client.embed([text]))
    assert requests(fake) == [["a"], ["b"], ["c"]]


def test_calls_that_wait_share_a_request(client: Client, fake: FakeServer, crowd: Crowd) -> None:
    """They go together when the request before comes back; each gets its own rows."""
    first = hold_first(crowd, client, fake)
    texts = [["a"], ["b", "c"], ["a", "x" * 300]]
    waiting = [crowd.embed(client, each) for each in texts]
    assert requests(fake) == []
    fake.release()
    for each, future in zip([["first"], *texts], [first, *waiting], strict=True):
        np.testing.assert_array_equal(vectors_of(each), future.result())
    assert requests(fake) == [list(itertools.chain(*texts))]
    assert [future.result().truncated for future in waiting] == [(), (), (1,)]
    assert waiting[1].result().token_counts == (3, 3)


def test_two_requests_are_on_their_way_by_default(
    connect: Connect, fake: FakeServer, crowd: Crowd
) -> None:
    """`coalesce=True` is `Coalescing()`: the server works on one while one returns."""
    client = connect(coalesce=True)
    fake.hold()
    for text in "ab":
        crowd.embed(client, [text])
        fake.held.get(timeout=10)
    assert requests(fake) == [["a"], ["b"]]


def test_call_waits_no_longer_than_was_said(
    connect: Connect, fake: FakeServer, crowd: Crowd
) -> None:
    """Then it goes, although nothing came back."""
    client = connect(coalesce=Coalescing(requests_in_flight=1, max_wait_s=0.001))
    hold_first(crowd, client, fake)
    assert len(crowd.embed(client, ["a"]).result(timeout=10)) == 1


def test_other_options_do_not_share_and_do_not_wait(
    client: Client, fake: FakeServer, crowd: Crowd
) -> None:
    """A call of other options passes one that waits; each is asked for as it was meant."""
    hold_first(crowd, client, fake)
    waiting = crowd.embed(client, ["a"])
    assert crowd.embed(client, ["a"], dimensions=4).result().vectors.shape == (1, 4)
    assert crowd.embed(client, ["a"], encoding="int8").result().scales is not None
    fake.release()
    assert waiting.result().vectors.shape == (1, fakes.DIMENSIONS)


def test_tokens_do_not_share_with_texts(client: Client, fake: FakeServer, crowd: Crowd) -> None:
    """A request has one kind of input."""
    hold_first(crowd, client, fake)
    expected = vectors_of([fakes.text_of_tokens([1, 2])])
    np.testing.assert_array_equal(expected, client.embed_tokens([[1, 2]]))


def test_call_with_a_request_id_goes_by_itself(
    client: Client, fake: FakeServer, crowd: Crowd
) -> None:
    """The server's log names the call as its caller wanted."""
    hold_first(crowd, client, fake)
    assert client.embed(["a"], request_id="mine").request_id == "server-mine"


def test_call_too_large_to_share_goes_by_itself(
    connect: Connect, fake: FakeServer, crowd: Crowd
) -> None:
    """It would be most of any request."""
    client = connect(coalesce=Coalescing(1, max_texts=3, max_wait_s=math.inf))
    hold_first(crowd, client, fake)
    assert len(client.embed(["a"] * 4)) == 4


def test_no_texts_are_refused_as_ever(client: Client) -> None:
    """They would vanish in company."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed([])
    assert raised.value.field == "texts"


def test_servers_limits_are_kept(client: Client, fake: FakeServer, crowd: Crowd) -> None:
    """No shared request is above what the server takes."""
    fake.limits.texts_per_request = 4
    hold_first(crowd, client, fake)
    waiting = [crowd.embed(client, [text]) for text in "abcdefghij"]
    fake.release()
    rows = np.concatenate([future.result().vectors for future in waiting])
    np.testing.assert_array_equal(vectors_of("abcdefghij"), rows)
    assert max(map(len, requests(fake))) == 4


def test_bad_text_fails_its_own_call(client: Client, fake: FakeServer, crowd: Crowd) -> None:
    """The others are answered by one more request; the error counts from the call's start."""
    fake.rule = refuse("bad", grpc.StatusCode.INVALID_ARGUMENT)
    hold_first(crowd, client, fake)
    before, culprit, after = (
        crowd.embed(client, texts) for texts in (["a", "b"], ["c", "bad"], ["d"])
    )
    fake.release()
    with pytest.raises(InvalidArgumentError, match=r"^texts\[1\]: 612 tokens") as raised:
        culprit.result()
    assert raised.value.field == "texts[1]"
    np.testing.assert_array_equal(vectors_of(["a", "b"]), before.result())
    np.testing.assert_array_equal(vectors_of(["d"]), after.result())
    assert requests(fake) == [["a", "b", "c", "bad", "d"], ["a", "b", "d"]]


def test_error_of_unknown_cause_fails_who_causes_it(
    client: Client, fake: FakeServer, crowd: Crowd
) -> None:
    """Each is sent alone, once, and the one at fault gets the error."""
    fake.rule = refuse("bad", grpc.StatusCode.INTERNAL)
    hold_first(crowd, client, fake)
    good, bad, fine = (crowd.embed(client, [text]) for text in ("a", "bad", "b"))
    fake.release()
    with pytest.raises(InternalError):
        bad.result()
    rows = np.concatenate([good.result().vectors, fine.result().vectors])
    np.testing.assert_array_equal(vectors_of(["a", "b"]), rows)
    together, *alone = requests(fake)
    assert (together, sorted(alone)) == (["a", "bad", "b"], [["a"], ["b"], ["bad"]])


def test_error_that_concerns_all_is_raised_by_all(
    client: Client, fake: FakeServer, crowd: Crowd
) -> None:
    """Nothing is sent again."""
    hold_first(crowd, client, fake)
    waiting = [crowd.embed(client, [text]) for text in "abc"]
    fake.fail("Embed", fakes.status(grpc.StatusCode.NOT_FOUND, reason="MODEL_NOT_FOUND"))
    fake.release()
    for future in waiting:
        with pytest.raises(ModelNotFoundError) as raised:
            future.result()
        assert raised.value.reason == "MODEL_NOT_FOUND"
    assert len(requests(fake)) == 1


def test_overload_is_retried_for_all(
    client: Client, fake: FakeServer, crowd: Crowd, time: FakeTime
) -> None:
    """As one request, after what the server said."""
    hold_first(crowd, client, fake)
    waiting = [crowd.embed(client, [text]) for text in "abc"]
    fake.fail("Embed", fakes.overloaded(2.0))
    fake.release()
    assert [len(future.result()) for future in waiting] == [1, 1, 1]
    assert requests(fake) == [["a", "b", "c"]] * 2
    assert time.waits_s == [pytest.approx(2.05)]


@pytest.mark.parametrize("early", [0, 1, 2])
def test_deadline_of_one_is_not_the_others(
    client: Client, fake: FakeServer, crowd: Crowd, early: int
) -> None:
    """Who has less time leaves in time, whoever sends; the others get their rows."""
    hold_first(crowd, client, fake)
    waiting = [
        crowd.embed(client, [text], timeout_s=0.5 if number == early else 60)
        for number, text in enumerate("abc")
    ]
    fake.hold()
    fake.release_first()
    fake.held.get(timeout=10)
    late = waiting.pop(early)
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.5 s"):
        late.result(timeout=10)
    fake.release()
    assert [len(future.result()) for future in waiting] == [1, 1]
    assert len(requests(fake)) == 1
    assert fake.calls[-1].timeout_s == pytest.approx(60, rel=0.05)


def test_deadline_passes_while_a_call_waits(client: Client, fake: FakeServer, crowd: Crowd) -> None:
    """It leaves the line, and is not sent."""
    hold_first(crowd, client, fake)
    late = crowd.embed(client, ["late"], timeout_s=0.05)
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.05 s"):
        late.result(timeout=10)
    waiting = crowd.embed(client, ["a"])
    fake.release()
    waiting.result()
    assert requests(fake) == [["a"]]


def test_deadline_during_a_retry_tells_why_it_was_retried(
    client: Client, fake: FakeServer, crowd: Crowd
) -> None:
    """Also to those who did not send the request themselves."""
    hold_first(crowd, client, fake)
    fake.fail("Embed", fakes.overloaded())
    waiting = [crowd.embed(client, [text], timeout_s=timeout_s)
               for text, timeout_s in (("a", 60), ("b", 1))]  # fmt: skip
    fake.hold(text="a")
    fake.release_first()
    with pytest.raises(DeadlineExceededError) as raised:
        waiting[1].result(timeout=10)
    assert raised.value.reason == "OVERLOADED"
    assert str(raised.value) == "no answer within 1 s; the try before: on demand"


def test_close_fails_the_calls_that_wait_and_those_on_their_way(
    client: Client, fake: FakeServer, crowd: Crowd
) -> None:
    """Clearly, at once, and for good."""
    calls = [hold_first(crowd, client, fake)]
    calls += [crowd.embed(client, [text]) for text in "abc"]
    client.close()
    for call in calls:
        with pytest.raises(UnavailableError, match="the client was closed"):
            call.result(timeout=10)
    with pytest.raises(UnavailableError, match="the client was closed"):
        client.embed(["late"])
    assert requests(fake) == []


def test_close_during_back_off(connect: Connect, fake: FakeServer, crowd: Crowd) -> None:
    """Nobody waits for the end of a back-off that leads nowhere."""
    waits: SimpleQueue[None] = SimpleQueue()

    def wait(event: threading.Event, seconds: float) -> None:
        waits.put(None)
        event.wait(seconds)

    async def sleep(seconds: float) -> None:
        waits.put(None)
        await asyncio.sleep(seconds)

    client = connect(coalesce=ONE_AT_A_TIME, clock=Clock(wait=wait, sleep=sleep))
    client.server_info()
    fake.fail("Embed", fakes.overloaded(50.0))
    calls = [crowd.embed(client, ["a"])]
    waits.get(timeout=10)
    calls += [crowd.embed(client, ["b"])]
    client.close()
    for call in calls:
        with pytest.raises(UnavailableError, match="the client was closed"):
            call.result(timeout=10)


@pytest.mark.parametrize("requests_in_flight", [1, 2, 5])
def test_rows_go_to_the_right_callers_under_load(
    connect: Connect, fake: FakeServer, requests_in_flight: int
) -> None:
    """Whatever is put together, each of many calls gets the vectors of its own texts."""
    client = connect(coalesce=Coalescing(requests_in_flight, max_texts=16))
    fake.rule = refuse("bad", grpc.StatusCode.INVALID_ARGUMENT)

    def call_on(caller: int) -> None:
        rng = random.Random(caller)
        for turn in range(15):
            texts = [f"{caller} {turn} {n}" for n in range(rng.randint(1, 5))]
            if rng.random() < 0.1:
                texts[-1] = "bad"
                with pytest.raises(InvalidArgumentError) as raised:
                    client.embed(texts)
                assert raised.value.field == f"texts[{len(texts) - 1}]"
            else:
                dimensions = rng.choice((3, 12))
                vectors = client.embed(texts, dimensions=dimensions).vectors
                np.testing.assert_array_equal(vectors_of(texts)[:, :dimensions], vectors)

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(call_on, range(32)))


def test_interrupted_leader_leaves_its_request_to_another(fake: FakeServer, crowd: Crowd) -> None:
    """A thread that is interrupted while it sends for all takes nobody along."""

    def interrupt(_: threading.Event, __: float) -> None:
        raise KeyboardInterrupt

    with Client(fake.address, coalesce=ONE_AT_A_TIME, clock=Clock(wait=interrupt)) as client:
        hold_first(crowd, client, fake)
        leader = crowd.embed(client, ["a"], timeout_s=60)
        others = [crowd.embed(client, [text], timeout_s=30) for text in "bc"]
        fake.fail("Embed", fakes.overloaded())
        fake.release()
        with pytest.raises(KeyboardInterrupt):
            leader.result()
        assert [len(other.result()) for other in others] == [1, 1]
    assert requests(fake) == [["a", "b", "c"], ["b", "c"]]


async def arrive(*calls: asyncio.Task[Embeddings]) -> None:
    """Let tasks run until they wait for their answers."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(call.done() for call in calls)


async def test_tasks_that_call_in_the_same_turn_travel_together(fake: FakeServer) -> None:
    """Though the client is idle: waiting for the tasks that are ready costs nothing."""
    async with AsyncClient(fake.address, coalesce=ONE_AT_A_TIME) as client:
        await client.embed(["first"])
        results = await asyncio.gather(*(client.embed([text]) for text in "abc"))
    np.testing.assert_array_equal(vectors_of("abc"), np.concatenate(results))
    assert requests(fake) == [["a", "b", "c"]]


async def test_cancelled_task_leaves_its_mates(fake: FakeServer) -> None:
    """Before and after its request is sent; its row is dropped."""
    async with AsyncClient(fake.address, coalesce=ONE_AT_A_TIME) as client:
        await client.embed(["first"])
        fake.hold()
        first = [asyncio.create_task(client.embed([text])) for text in "ab"]
        await asyncio.to_thread(fake.held.get, timeout=10)
        second = [asyncio.create_task(client.embed([text])) for text in "cd"]
        await arrive(*second)
        for left in (first[0], second[0]):
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
        fake.release()
        np.testing.assert_array_equal(vectors_of("b"), await first[1])
        np.testing.assert_array_equal(vectors_of("d"), await second[1])
    assert requests(fake) == [["a", "b"], ["d"]]


async def test_request_that_nobody_waits_for_is_cancelled(fake: FakeServer) -> None:
    """The server hears of it, and the next calls have their turn."""
    async with AsyncClient(fake.address, coalesce=ONE_AT_A_TIME) as client:
        fake.hold(text="a")
        calls = [asyncio.create_task(client.embed([text])) for text in "ab"]
        await asyncio.to_thread(fake.held.get, timeout=10)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await asyncio.to_thread(fake.cancelled.get, timeout=10)
        np.testing.assert_array_equal(vectors_of("c"), await client.embed(["c"]))
