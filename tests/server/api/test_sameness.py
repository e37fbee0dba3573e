"""The same text has the same bits, alone and in any company (fp32 on the CPU)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from shoal.v1 import embed_pb2 as pb

from .calls import TIMEOUT_S, Connection, rows
from .texts import many_texts

TEXTS = many_texts(repeat=3)


@pytest.fixture(scope="module")
def alone(real: Connection) -> list[bytes]:
    """The vector of each text, sent when nothing else is there."""
    return [real.embed(text).vectors for text in TEXTS]


def shuffled(seed: int) -> list[int]:
    order = [*range(len(TEXTS))]
    random.Random(seed).shuffle(order)
    return order


def groups(order: list[int], seed: int) -> Iterator[list[int]]:
    """`order` cut into pieces of 1 to 12."""
    sizes = random.Random(seed)
    while order:
        size = sizes.randint(1, 12)
        yield order[:size]
        order = order[size:]


def test_there_are_enough_texts() -> None:
    """More than a hundred, of all lengths."""
    assert len(TEXTS) > 100
    assert min(map(len, TEXTS)) == 0
    assert max(len(text.split()) for text in TEXTS) > 256


def test_alone_again(real: Connection, alone: list[bytes]) -> None:
    """A text has the same bits the second time."""
    again = [real.embed(text).vectors for text in TEXTS[::5]]

    assert again == alone[::5]


def test_in_one_request(real: Connection, alone: list[bytes]) -> None:
    """All at once, in whatever batches that makes."""
    order = shuffled(1)

    answer = real.embed(*(TEXTS[index] for index in order))

    found = [row.tobytes() for row in rows(answer)]
    assert found == [alone[index] for index in order]
    assert answer.timings.batch_size > 1


def test_concurrently(real: Connection, alone: list[bytes]) -> None:
    """Each in a request of its own, all under way together."""
    order = shuffled(2)

    pending = [real.start(TEXTS[index]) for index in order]

    assert [each.result().vectors for each in pending] == [alone[index] for index in order]


def test_in_requests_of_all_sizes(real: Connection, alone: list[bytes]) -> None:
    """Requests that share batches with each other, of mixed priorities."""
    pieces = [*groups(shuffled(3), seed=4)]
    priorities = random.Random(5)

    pending = [
        real.start(
            *(TEXTS[index] for index in piece), priority=priorities.choice(pb.Priority.values())
        )
        for piece in pieces
    ]

    for piece, future in zip(pieces, pending, strict=True):
        found = [row.tobytes() for row in rows(future.result())]
        assert found == [alone[index] for index in piece]


def test_in_a_stream(real: Connection, alone: list[bytes]) -> None:
    """Through the other face."""
    pieces = {str(number): piece for number, piece in enumerate(groups(shuffled(6), seed=7))}
    requests = [
        pb.EmbedStreamRequest(
            id=identifier, request=pb.EmbedRequest(texts=[TEXTS[index] for index in piece])
        )
        for identifier, piece in pieces.items()
    ]

    found = {
        answer.id: [row.tobytes() for row in rows(answer.response)]
        for answer in real.embedding.EmbedStream(iter(requests), timeout=TIMEOUT_S)
    }

    assert found == {
        identifier: [alone[index] for index in piece] for identifier, piece in pieces.items()
    }
