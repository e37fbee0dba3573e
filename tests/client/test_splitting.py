"""Splitting inputs into requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.v1.embed_pb2 import EmbedRequest, EmbedResponse, EmbedStreamRequest, TokenizeRequest
from shoal.v1.model_control_pb2 import Limits
from shoal_client import InvalidArgumentError
from shoal_client.splitting import (
    DEFAULT_LIMITS,
    PartLimits,
    TextChunker,
    strays,
    text_parts,
    token_parts,
)
from shoal_server.settings import Settings

texts_and_limits = (
    st.lists(st.text(max_size=30), max_size=40),
    st.builds(PartLimits, items=st.integers(1, 10), bytes=st.integers(1, 200)),
)


@given(*texts_and_limits)
def test_parts_hold_all_texts_in_order(texts: list[str], limits: PartLimits) -> None:
    """Nothing is lost, doubled or moved, and offsets say where each part begins."""
    parts = text_parts(texts, EmbedRequest(model="m"), limits)
    assert [text for part in parts for text in part.request.texts] == texts
    for part in parts:
        assert list(part.request.texts) == texts[part.offset :][: len(part.request.texts)]


@given(*texts_and_limits)
def test_parts_keep_the_limits(texts: list[str], limits: PartLimits) -> None:
    """A part is above the limit of bytes only when it is one text that is."""
    for part in text_parts(texts, EmbedRequest(), limits):
        count = len(part.request.texts)
        part.request.ClearField("routing_key")  # has room of its own, beside the limit
        assert count <= limits.items
        assert part.request.ByteSize() <= limits.bytes or count <= 1


@given(*texts_and_limits)
def test_chunks_are_the_same_as_parts(texts: list[str], limits: PartLimits) -> None:
    """The stream groups texts one at a time as a call groups them all."""
    template = EmbedRequest(model="m", routing_key="one")
    chunker = TextChunker(template, limits, chunk_size=100)
    chunks = [chunker.add(text) for text in texts]
    chunks.append(chunker.flush())
    found = [chunk for chunk in chunks if chunk is not None]
    parts = text_parts(texts, template, limits)
    assert found == [part.request for part in parts if part.request.texts]


def test_options_are_in_every_part() -> None:
    """Each part asks for the same thing."""
    template = EmbedRequest(model="m", dimensions=3, truncate=False, routing_key="one")
    parts = text_parts(["a"] * 5, template, PartLimits(items=2, bytes=1000))
    assert [len(part.request.texts) for part in parts] == [2, 2, 1]
    for part in parts:
        part.request.ClearField("texts")
        assert part.request == EmbedRequest(
            model="m", dimensions=3, truncate=False, routing_key="one"
        )


def test_parts_of_one_call_get_the_same_version() -> None:
    """Versions that share an alias's traffic do not share a call; another call is another draw."""
    keys = []
    for _ in range(2):
        parts = text_parts(["a"] * 5, EmbedRequest(model="m"), PartLimits(items=2, bytes=1000))
        (key,) = {part.request.routing_key for part in parts}
        keys.append(key)
    assert keys[0] != keys[1]
    assert all(keys)


def test_parts_that_another_version_answered_are_told() -> None:
    """They are the ones to send again, by the name of the version that answered last."""
    parts = text_parts(["a"] * 3, EmbedRequest(model="prod"), PartLimits(items=1, bytes=1000))
    answers = [EmbedResponse(model="m", version=version) for version in ("1", "2", "2")]
    assert strays(parts, [(answer, "id") for answer in answers]) == [0]
    assert [part.request.model for part in parts] == ["m@2", "prod", "prod"]


def test_tokens_are_split_like_texts() -> None:
    """Offsets and order hold for token ids."""
    parts = token_parts(
        [[number] for number in range(5)], EmbedRequest(), PartLimits(items=2, bytes=1000)
    )
    assert [part.offset for part in parts] == [0, 2, 4]
    assert [list(ids.ids) for part in parts for ids in part.request.tokens] == [
        [0],
        [1],
        [2],
        [3],
        [4],
    ]


@pytest.mark.parametrize("ids", [[-1], [2**32]])
def test_token_id_out_of_range_is_named(ids: list[int]) -> None:
    """An id that is no uint32 is refused before anything is sent."""
    with pytest.raises(InvalidArgumentError) as raised:
        token_parts([[1], ids], EmbedRequest(), PartLimits(items=9, bytes=999))
    assert raised.value.field == "tokens[1]"


def test_wide_rows_bound_the_number_of_texts() -> None:
    """The answer, too, stays below the limit of a message."""
    limits = Limits(texts_per_request=2048, message_bytes=1_001_024)
    assert PartLimits.of(limits, EmbedRequest(dimensions=1000)).items == 1_000_000 // 4016
    assert PartLimits.of(limits, TokenizeRequest()).items == 2048


def test_options_count_as_bytes_of_a_request() -> None:
    """A request as a whole, in a stream too, stays below the limit."""
    limits = Limits(texts_per_request=2048, bytes_per_request=1000, message_bytes=10_000_000)
    template = EmbedRequest(model="m" * 128, prompt_name="p" * 200)
    for part in text_parts(["word"] * 500, template, PartLimits.of(limits, template)):
        message = EmbedStreamRequest(id="1234567", request=part.request, timeout_ms=2**32 - 1)
        assert message.ByteSize() <= 1000


def test_unset_limits_are_the_defaults() -> None:
    """A server that tells none of its limits is taken to have the documented ones."""
    template = EmbedRequest()
    assert PartLimits.of(Limits(), template) == PartLimits.of(DEFAULT_LIMITS, template)


def test_defaults_are_the_servers() -> None:
    """What the SDK assumes is what the server does when nothing is set."""
    settings = Settings()
    assert (
        Limits(
            texts_per_request=settings.max_texts_per_request,
            bytes_per_request=settings.max_request_bytes,
            message_bytes=settings.max_message_bytes,
        )
        == DEFAULT_LIMITS
    )
