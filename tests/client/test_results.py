"""What the caller gets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from shoal.v1.embed_pb2 import EmbedResponse, Timings, VectorEncoding
from shoal_client import Client, Embeddings
from shoal_client.requests import Encoding
from shoal_client.results import decode, join
from tests.client.fake import DIMENSIONS, vectors_of

TEXTS = ["one", "two", "three"]


def response(rows: int, *, start: int = 0, **fields: int) -> EmbedResponse:
    values = np.arange(start, start + 2 * rows, dtype="<f4")
    return EmbedResponse(
        model="m",
        version="1",
        vectors=values.tobytes(),
        dimensions=2,
        encoding=VectorEncoding.VECTOR_ENCODING_FLOAT32,
        token_counts=range(start, start + rows),
        timings=Timings(**fields),
    )


def test_result_is_an_array() -> None:
    """NumPy takes it as is; it has length, rows and slices."""
    result = decode(response(3), "r")
    np.testing.assert_array_equal([[0, 1], [2, 3], [4, 5]], np.asarray(result))
    assert np.asarray(result, dtype=np.float64).dtype == np.float64
    assert (len(result), result[1].tolist(), result[:2].shape) == (3, [2, 3], (2, 2))
    assert [row.tolist() for row in result] == [[0, 1], [2, 3], [4, 5]]
    assert float((result[0] @ np.asarray(result).T)[1]) == 3


def test_vectors_are_not_copied() -> None:
    """The array is a read-only view of the answer's bytes; asked for, it is copied."""
    result = decode(response(2), "r")
    assert not result.vectors.flags.owndata
    assert not result.vectors.flags.writeable
    assert np.array(result, copy=True).flags.writeable


def test_result_can_not_be_changed() -> None:
    """A result says what the server said."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        decode(response(1), "r").model = "other"  # type: ignore[misc]


def test_representation_is_short() -> None:
    """A result in a console shows its shape, not its numbers."""
    assert repr(decode(response(3), "r")) == (
        "Embeddings(float32[3, 2], model=m@1, tokens=3, truncated=0)"
    )


def test_joined_parts_read_as_one() -> None:
    """Rows and counts follow each other; timings are the largest of each kind."""
    parts = [
        decode(response(2, total_us=5, queue_us=9), "r"),
        decode(response(1, start=4, total_us=7, batch_size=3), "r"),
    ]
    joined = join(parts)
    np.testing.assert_array_equal([[0, 1], [2, 3], [4, 5]], joined)
    assert joined.token_counts == (0, 1, 4)
    assert joined.timings == Timings(total_us=7, queue_us=9, batch_size=3)


@pytest.mark.parametrize(
    ("encoding", "dtype", "width", "tolerance"),
    [
        ("float32", np.float32, DIMENSIONS, 0.0),
        ("float16", np.float16, DIMENSIONS, 5e-4),
        ("int8", np.int8, DIMENSIONS, 5e-3),
    ],
)
def test_encodings_come_back_as_float32(
    client: Client, encoding: Encoding, dtype: type[np.generic], width: int, tolerance: float
) -> None:
    """Vectors have the encoding's own dtype, and `to_float32` undoes it."""
    result = client.embed(TEXTS, encoding=encoding)
    assert result.vectors.dtype == np.dtype(dtype)
    assert result.vectors.shape == (3, width)
    np.testing.assert_allclose(vectors_of(TEXTS), result.to_float32(), rtol=0, atol=tolerance)
    assert result.to_float32().dtype == np.float32


def test_ubinary_keeps_the_signs(client: Client) -> None:
    """Bits unpack to -1 and 1; the padding of the last byte is cut off."""
    result = client.embed(TEXTS, encoding="ubinary")
    assert result.vectors.dtype == np.uint8
    assert result.vectors.shape == (3, 2)
    np.testing.assert_array_equal(np.sign(vectors_of(TEXTS)), result.to_float32())


def test_scales_of_split_results_follow_their_rows(client: Client) -> None:
    """int8 rows of every part keep their own scale."""
    texts = [f"text {number}" for number in range(250)]
    result = client.embed(texts, encoding="int8")
    assert isinstance(result, Embeddings)
    np.testing.assert_allclose(vectors_of(texts), result.to_float32(), rtol=0, atol=5e-3)
