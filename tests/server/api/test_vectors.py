"""What the vectors of an answer are: encodings, slices, normalisation, tokens.

Expected values are made here, from the float32 answer, by code of the tests' own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal.v1 import embed_pb2 as pb

from .calls import Connection, Float32, rows

TEXTS = ["A shoal of fish", "", "Fische schwimmen im Schwarm", "42", "fish " * 300]
DIMENSIONS = 384
# Products and sums of 384 float32 numbers, in whatever order.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def exact(real: Connection) -> Float32:
    """float32[N, D] of TEXTS."""
    return rows(real.embed(*TEXTS))


def test_float32_is_the_default(real: Connection, exact: Float32) -> None:
    """Unspecified and FLOAT32 are the same bytes, and the answer says FLOAT32."""
    answer = real.embed(*TEXTS, encoding=pb.VECTOR_ENCODING_FLOAT32)

    assert answer.encoding == pb.VECTOR_ENCODING_FLOAT32
    assert answer.vectors == exact.tobytes()
    assert answer.dimensions == DIMENSIONS
    assert len(answer.scales) == 0


def test_float16_is_rounded_to_nearest(real: Connection, exact: Float32) -> None:
    """Each number is the float16 next to the float32 one."""
    answer = real.embed(*TEXTS, encoding=pb.VECTOR_ENCODING_FLOAT16)

    found = np.frombuffer(answer.vectors, "<f2").reshape(exact.shape)
    error = np.abs(found.astype(np.float64) - exact)
    # Half of the distance to the next float16: 11 bits of mantissa, or the least step.
    half_step = np.maximum(np.spacing(np.abs(found)).astype(np.float64), 2.0**-24) / 2
    assert answer.encoding == pb.VECTOR_ENCODING_FLOAT16
    assert (error <= half_step).all()


def test_int8_is_within_half_a_step_of_its_scale(real: Connection, exact: Float32) -> None:
    """A value is byte × scale, scale = max|value| / 127, as the proto says."""
    answer = real.embed(*TEXTS, encoding=pb.VECTOR_ENCODING_INT8)

    found = np.frombuffer(answer.vectors, np.int8).reshape(exact.shape).astype(np.float64)
    scales = np.array(answer.scales, dtype=np.float64)[:, None]
    assert scales[:, 0] == pytest.approx(np.abs(exact).max(axis=1) / 127, rel=1e-6)
    assert np.abs(found).max(axis=1).tolist() == [127] * len(TEXTS)
    assert (np.abs(found * scales - exact) <= scales * 0.5001).all()


@pytest.mark.parametrize("dimensions", [384, 100, 1])
def test_ubinary_is_the_signs_first_bit_first(
    real: Connection, exact: Float32, dimensions: int
) -> None:
    """Bit 7 of byte 0 is dimension 0; the last byte is filled up with zeros."""
    answer = real.embed(*TEXTS, encoding=pb.VECTOR_ENCODING_UBINARY, dimensions=dimensions)

    width = -(-dimensions // 8)
    assert len(answer.vectors) == width * len(TEXTS)
    assert answer.dimensions == dimensions
    for number, row in enumerate(exact):
        bits = "".join("1" if value > 0 else "0" for value in row[:dimensions])
        expected = int(bits.ljust(width * 8, "0"), 2).to_bytes(width, "big")
        assert answer.vectors[number * width : (number + 1) * width] == expected


@pytest.mark.parametrize("dimensions", [1, 64, 383])
def test_slice_is_renormalised(real: Connection, exact: Float32, dimensions: int) -> None:
    """A Matryoshka slice points where the first dimensions point, at unit length."""
    found = rows(real.embed(*TEXTS, dimensions=dimensions))

    cut = exact[:, :dimensions].astype(np.float64)
    expected = cut / np.sqrt((cut * cut).sum(axis=1, keepdims=True))
    assert found.shape == (len(TEXTS), dimensions)
    assert np.abs(found - expected).max() <= CLOSE


def test_slice_is_taken_before_it_is_encoded(real: Connection) -> None:
    """int8 of a slice has the slice's scale, not the whole vector's."""
    answer = real.embed(*TEXTS, dimensions=64, encoding=pb.VECTOR_ENCODING_INT8)

    cut = rows(real.embed(*TEXTS, dimensions=64))
    assert list(answer.scales) == pytest.approx(np.abs(cut).max(axis=1) / 127, rel=1e-6)


def test_not_normalised_is_the_pooled_vector(real: Connection, exact: Float32) -> None:
    """normalize=False gives another length and the same direction; True is the default."""
    pooled = rows(real.embed(*TEXTS, normalize=False)).astype(np.float64)

    lengths = np.sqrt((pooled * pooled).sum(axis=1, keepdims=True))
    assert (np.abs(lengths - 1) > 0.01).any()
    assert np.abs(pooled / lengths - exact).max() <= CLOSE
    assert real.embed(*TEXTS, normalize=True).vectors == exact.tobytes()


def test_slice_of_the_pooled_vector_is_left_as_it_is(real: Connection) -> None:
    """Asked for dimensions with normalize=False the server cuts and no more."""
    whole = rows(real.embed(*TEXTS, normalize=False))

    cut = rows(real.embed(*TEXTS, normalize=False, dimensions=10))

    assert cut.tobytes() == whole[:, :10].tobytes()


def test_requests_of_one_batch_keep_their_own_options(real: Connection, exact: Float32) -> None:
    """A batch mate that wants its vector otherwise changes nobody else's."""
    wishes: list[dict[str, Any]] = [{}, {"normalize": False}, {"dimensions": 7}] * 8
    pending = [real.start(TEXTS[0], **wish) for wish in wishes]

    alone = [real.embed(TEXTS[0], **wish).vectors for wish in wishes[:3]]
    assert [each.result().vectors for each in pending] == alone * 8
    assert alone[0] == exact[0].tobytes()


def test_counts_are_tokens_the_model_saw(real: Connection) -> None:
    """Special tokens included, after the cut, and the cut is told."""
    answer = real.embed("hello", "", "hello " * 300, "hello " * 254)

    assert list(answer.token_counts) == [3, 2, 256, 256]
    assert list(answer.truncated) == [2]


def test_whole_text_is_no_cut_text(real: Connection) -> None:
    """truncate=False refuses nothing that fits: 254 words and two special tokens."""
    text = "hello " * 254

    answer = real.embed(text, truncate=False)

    assert list(answer.token_counts) == [256]
    assert answer.vectors == real.embed(text).vectors


def test_tokens_are_what_tokenize_says(real: Connection) -> None:
    """Embedding a text's token ids gives the bits that embedding the text gives."""
    by_text = real.embed(*TEXTS)

    tokenized = real.embedding.Tokenize(pb.TokenizeRequest(texts=TEXTS))
    ids = [pb.TokenIds(ids=each.ids) for each in tokenized.results]
    by_tokens = real.embedding.Embed(pb.EmbedRequest(tokens=ids))

    assert by_tokens.vectors == by_text.vectors
    assert by_tokens.token_counts == by_text.token_counts
    assert [index for index, each in enumerate(tokenized.results) if each.truncated] == [
        *by_text.truncated
    ]


def test_tokenize_gives_strings_when_asked(real: Connection) -> None:
    """The vocabulary's own strings, one an id; none unless asked."""
    request = pb.TokenizeRequest(texts=["hello embeddings"], include_strings=True)

    (found,) = real.embedding.Tokenize(request).results

    assert list(found.strings) == ["[CLS]", "hello", "em", "##bed", "##ding", "##s", "[SEP]"]
    assert len(found.ids) == len(found.strings)
    bare = real.embedding.Tokenize(pb.TokenizeRequest(texts=["hello"]))
    assert list(bare.results[0].strings) == []


def test_answer_says_which_model_ran(real: Connection) -> None:
    """Name and version, whichever way the model was called."""
    for name in ("", "all-minilm-l6-v2", "all-minilm-l6-v2@1"):
        answer = real.embed("x", model=name)

        assert (answer.model, answer.version) == ("all-minilm-l6-v2", "1")


@pytest.mark.parametrize("priority", pb.Priority.values())
def test_priority_changes_no_vector(
    real: Connection, exact: Float32, priority: pb.Priority
) -> None:
    """Who goes first is not what comes out."""
    assert real.embed(*TEXTS, priority=priority).vectors == exact.tobytes()


def test_timings_are_told(real: Connection) -> None:
    """Every part is there, and none is longer than the whole."""
    timings = real.embed(*TEXTS).timings

    parts = (timings.queue_us, timings.tokenize_us, timings.inference_us)
    assert timings.total_us > 0
    assert timings.inference_us > 0
    assert max(parts) <= timings.total_us
    assert 1 <= timings.batch_size <= len(TEXTS)
    assert timings.load_us == 0
