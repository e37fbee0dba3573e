"""The rows of the status table that take a model's or the server's state to reach.

Rows that a request alone can reach are in test_bad_input; models that can not be
loaded in tests/server/faults.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from shoal.v1 import embed_pb2 as pb
from tests.running import RunningServer
from tests.tiny_model import MAX_TOKENS, WORDS, TinyModel, make_tiny_model

from .calls import SLOW, Connection, assert_idle, eventually, refusal, rows, unharmed

OUT_OF_TABLE = len(WORDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny model whose manifest lets one token id through that its graph refuses."""
    return make_tiny_model(tmp_path_factory.mktemp("models"), vocabulary_size=OUT_OF_TABLE + 1)


@pytest.fixture(scope="module")
def running(model: TinyModel) -> Iterator[RunningServer]:
    with RunningServer(model_dir=model.root, default_model="tiny", cpu_slots=1) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(running: RunningServer) -> Iterator[Connection]:
    with unharmed(running) as connection:
        yield connection


def test_tiny_model_gives_the_vectors_it_should(tiny: Connection, model: TinyModel) -> None:
    """What the other tests compare with: the server's answer is the hand-made vector."""
    texts = ["red", "red blue", "violet unheard-of green", "slow yellow"]

    found = rows(tiny.embed(*texts))
    pooled = rows(tiny.embed(*texts, normalize=False))

    np.testing.assert_allclose(found, [model.vector(text) for text in texts], atol=1e-6)
    np.testing.assert_allclose(pooled, [model.pooled(text) for text in texts], atol=1e-6)


def test_prompt_is_put_before_the_text(tiny: Connection) -> None:
    """The named prompt, on every text, counted as tokens."""
    prompted = tiny.embed("blue", "green", prompt_name="query")

    spelled_out = tiny.embed("red blue", "red green")
    assert prompted.vectors == spelled_out.vectors
    assert list(prompted.token_counts) == [2, 2]


def test_text_without_any_token_has_the_zero_vector(tiny: Connection) -> None:
    """A tokenizer without special tokens makes nothing of an empty text; that is valid."""
    alone, mixed = tiny.embed(""), tiny.embed("red", "", "blue green")

    assert rows(alone).tolist() == [[0.0] * 8]
    assert list(alone.token_counts) == [0]
    assert rows(mixed)[1].tolist() == [0.0] * 8
    assert rows(mixed)[0].tobytes() == tiny.embed("red").vectors


def test_non_finite_output_fails_its_own_callers_only(tiny: Connection) -> None:
    """INTERNAL for who sent the text; whoever shared its batch gets the right vector."""
    right = {word: tiny.embed(word).vectors for word in ("red", "blue", "green")}
    blocker = tiny.start(SLOW)
    tiny.wait_in_flight(1)
    # All of one length and all waiting for the one slot: batch mates.
    pending = [(word, tiny.start(word)) for word in ["red", "nan", "blue", "nan", "green"] * 4]

    for word, future in pending:
        if word == "nan":
            found = refusal(future.result)
            assert found.code is grpc.StatusCode.INTERNAL
            assert (found.reason, found.domain) == ("INFERENCE_FAILED", "shoal")
            assert "not finite" in found.message
        else:
            assert future.result().vectors == right[word]
    assert blocker.result().dimensions == 8


def test_one_bad_text_fails_its_request(tiny: Connection) -> None:
    """A request is answered whole or not at all."""
    found = refusal(lambda: tiny.embed("red", "nan", "blue"))

    assert (found.code, found.reason) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")


def test_failing_run_is_internal_and_tells_no_path(
    tiny: Connection, running: RunningServer
) -> None:
    """The runtime's error is told in brief, without the machine's folders."""
    request = pb.EmbedRequest(tokens=[pb.TokenIds(ids=[OUT_OF_TABLE])])

    found = refusal(lambda: tiny.embedding.Embed(request))

    assert (found.code, found.reason) == (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")
    assert found.message.startswith("the model's run failed")
    assert "/" not in found.message.replace("node. Name:", "")


def test_deadline_in_the_queue_costs_no_device_time(
    tiny: Connection, running: RunningServer
) -> None:
    """Who waits too long is answered while it waits, and is never run."""
    items_before = running.metric("shoal_batch_items_sum")
    dropped_before = running.metric("shoal_dropped_items_total")
    blocker = tiny.start(SLOW)
    tiny.wait_in_flight(1)

    found = refusal(tiny.start(*["red"] * 5, timeout=0.1).result)

    assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not blocker.done()
    eventually(
        lambda: running.metric("shoal_dropped_items_total") == dropped_before + 5,
        "5 items dropped",
    )
    assert not blocker.done()
    blocker.result()
    assert_idle(tiny)
    assert running.metric("shoal_batch_items_sum") == items_before + 1


def test_late_and_cancelled_calls_are_told_apart(tiny: Connection, running: RunningServer) -> None:
    """Each is counted as what it was, though gRPC ends both the same way."""
    codes = ("DEADLINE_EXCEEDED", "CANCELLED")

    def counted() -> list[float]:
        return [running.metric("shoal_requests_total", method="Embed", code=c) for c in codes]

    before = counted()
    blocker = tiny.start(SLOW * 2)
    tiny.wait_in_flight(1)
    late = [tiny.start("red", timeout=0.1) for _ in range(20)]
    left = [tiny.start("red") for _ in range(10)]
    assert {refusal(each.result).code for each in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    for future in left:
        future.cancel()
    blocker.result()
    assert_idle(tiny)

    assert [now - then for now, then in zip(counted(), before, strict=True)] == [20, 10]


def test_cancelled_caller_leaves_the_queue(tiny: Connection, running: RunningServer) -> None:
    """What nobody waits for is not run, and its batch mates are."""
    dropped_before = running.metric("shoal_dropped_items_total")
    blocker = tiny.start(SLOW)
    tiny.wait_in_flight(1)
    leaving, staying = tiny.start("red", "red"), tiny.start("blue")
    tiny.wait_in_flight(3)

    leaving.cancel()

    assert staying.result().vectors == tiny.embed("blue").vectors
    assert running.metric("shoal_dropped_items_total") == dropped_before + 2
    blocker.result()


def test_high_priority_overtakes(tiny: Connection) -> None:
    """A person's request does not wait for bulk work that came before it."""
    done: list[str] = []
    blocker = tiny.start(SLOW)
    tiny.wait_in_flight(1)
    # Of different lengths by far, so that they share no batch.
    low = tiny.start("slow " + "red " * (MAX_TOKENS - 1), priority=pb.PRIORITY_LOW)
    tiny.wait_in_flight(2)
    high = tiny.start("slow", priority=pb.PRIORITY_HIGH)
    low.add_done_callback(lambda _: done.append("low"))
    high.add_done_callback(lambda _: done.append("high"))

    low.result(), high.result(), blocker.result()

    eventually(lambda: len(done) == 2, "both are done")
    assert done == ["high", "low"]
