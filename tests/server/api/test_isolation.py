"""Under load, what one caller does to itself happens to nobody else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from shoal.v1 import embed_pb2 as pb
from tests.running import RunningServer

from .calls import TIMEOUT_S, Connection, Float32, refusal, rows
from .texts import reference

ROUNDS = 5


class Caller:
    """One caller: what it sends is drawn from its own seed.

    Attributes:
        outcomes: How often what happened.
    """

    def __init__(self, server: RunningServer, connection: Connection, seed: int) -> None:
        self.server = server
        self.connection = connection
        self.random = random.Random(seed)
        self.texts, self.vectors = reference()
        self.outcomes: Counter[str] = Counter()

    def draw(self) -> tuple[list[str], Float32]:
        """Some texts and their vectors."""
        chosen = self.random.sample(range(len(self.texts)), self.random.randint(1, 5))
        return [self.texts[index] for index in chosen], self.vectors[chosen]

    def check(self, response: pb.EmbedResponse, expected: Float32) -> None:
        """An answer is the right one, whoever it was batched with."""
        np.testing.assert_allclose(rows(response), expected, rtol=0, atol=1e-5)
        self.outcomes["answered"] += 1


def steady(caller: Caller) -> None:
    """Waits for its answer, which must come."""
    texts, expected = caller.draw()
    caller.check(caller.connection.embed(*texts), expected)


def streaming(caller: Caller) -> None:
    """The same through a stream."""
    draws = {str(number): caller.draw() for number in range(3)}
    requests = (
        pb.EmbedStreamRequest(id=identifier, request=pb.EmbedRequest(texts=texts))
        for identifier, (texts, _) in draws.items()
    )
    answers = [*caller.connection.embedding.EmbedStream(requests, timeout=TIMEOUT_S)]
    assert {answer.id for answer in answers} == set(draws)
    for answer in answers:
        caller.check(answer.response, draws[answer.id][1])


def fickle(caller: Caller) -> None:
    """Loses patience at some moment and cancels."""
    texts, expected = caller.draw()
    future = caller.connection.start(*texts)
    try:
        caller.check(future.result(timeout=caller.random.uniform(0, 0.1)), expected)
    except grpc.FutureTimeoutError:
        future.cancel()
        caller.outcomes["cancelled"] += 1


def fickle_in_a_stream(caller: Caller) -> None:
    """Takes one answer of a stream and leaves the rest."""
    texts, expected = caller.draw()
    request = pb.EmbedStreamRequest(request=pb.EmbedRequest(texts=texts))
    stream = caller.connection.embedding.EmbedStream(iter([request] * 5), timeout=TIMEOUT_S)
    caller.check(next(stream).response, expected)
    stream.cancel()
    caller.outcomes["cancelled"] += 1


def hasty(caller: Caller) -> None:
    """Has a deadline that is hard to meet."""
    texts, expected = caller.draw()
    future = caller.connection.start(*texts, timeout=caller.random.uniform(0.001, 0.05))
    if future.exception() is None:
        caller.check(future.result(), expected)
    else:
        assert refusal(future.result).code is grpc.StatusCode.DEADLINE_EXCEEDED
        caller.outcomes["late"] += 1


def leaving(caller: Caller) -> None:
    """Has a connection of its own and drops it with requests in flight."""
    with Connection(caller.server.address) as own:
        texts, expected = caller.draw()
        caller.check(own.embed(*texts), expected)
        for _ in range(5):
            own.start(*texts)
    caller.outcomes["left"] += 1


def wrong(caller: Caller) -> None:
    """Sends what can not be served."""
    texts, _ = caller.draw()
    bad = pb.EmbedRequest(texts=[*texts, "hello " * 300], truncate=False)
    found = refusal(lambda: caller.connection.embedding.Embed(bad, timeout=TIMEOUT_S))
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.fields[0].startswith("texts[")
    caller.outcomes["refused"] += 1


CROWD: list[Callable[[Caller], None]] = [
    *[steady] * 20,
    *[streaming] * 4,
    *[fickle] * 12,
    *[fickle_in_a_stream] * 4,
    *[hasty] * 4,
    *[leaving] * 4,
    *[wrong] * 4,
]


def test_every_other_caller_gets_its_own_vectors(real: Connection, server: RunningServer) -> None:
    """Cancelling, expiring, leaving and wrong callers cost nobody else an answer."""
    callers = [Caller(server, real, seed) for seed in range(len(CROWD))]

    def live(caller: Caller, behave: Callable[[Caller], None]) -> None:
        for _ in range(ROUNDS):
            behave(caller)

    with ThreadPoolExecutor(len(CROWD)) as threads:
        for done in [*threads.map(live, callers, CROWD)]:
            assert done is None

    total = sum((caller.outcomes for caller in callers), Counter())
    # The patient ones got every answer, and the others did what they are there for.
    assert total["answered"] >= 20 * ROUNDS + 4 * ROUNDS * 3
    assert total["left"] == total["refused"] == 4 * ROUNDS
    assert total["cancelled"] > 4 * ROUNDS
    assert total["late"] > 0
