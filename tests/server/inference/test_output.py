"""From rows to bytes, compared with code that knows nothing of numpy's encoders."""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from shoal_server.core import VectorEncoding
from shoal_server.errors import InvalidInput
from shoal_server.inference.output import encode_rows, shape_rows, unit_length

Float32 = npt.NDArray[np.float32]

ROWS = np.random.default_rng(1).normal(size=(5, 19)).astype(np.float32)
MATRICES = st_numpy.arrays(
    np.float32,
    st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-100, 100, width=32),
)


def expected_bytes(rows: Float32, encoding: VectorEncoding) -> bytes:
    """Row by row, value by value, with struct."""
    out = b""
    for row in rows.tolist():
        match encoding:
            case VectorEncoding.FLOAT32:
                out += struct.pack(f"<{len(row)}f", *row)
            case VectorEncoding.FLOAT16:
                out += struct.pack(f"<{len(row)}e", *row)
            case VectorEncoding.UBINARY:
                bits = "".join("1" if value > 0 else "0" for value in row)
                bits += "0" * (-len(bits) % 8)
                out += bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
            case VectorEncoding.INT8:
                pytest.fail("has a scale; see below")
    return out


PLAIN = [VectorEncoding.FLOAT32, VectorEncoding.FLOAT16, VectorEncoding.UBINARY]


@pytest.mark.parametrize("encoding", PLAIN)
def test_plain_encodings(encoding: VectorEncoding) -> None:
    """Row-major, little-endian, no gaps between rows; binary rows filled up with zeros."""
    encoded = encode_rows(ROWS, encoding)
    assert encoded.vectors == expected_bytes(ROWS, encoding)
    assert encoded.scales is None


@pytest.mark.parametrize("encoding", PLAIN)
@given(rows=MATRICES)
def test_plain_encodings_of_any_matrix(encoding: VectorEncoding, rows: Float32) -> None:
    """Whatever the shape, every value is where it should be."""
    assert encode_rows(rows, encoding).vectors == expected_bytes(rows, encoding)


@pytest.mark.parametrize("encoding", list(VectorEncoding))
def test_the_layout_in_memory_does_not_matter(encoding: VectorEncoding) -> None:
    """A slice, a transposed array and one of big-endian numbers give the same bytes."""
    expected = encode_rows(ROWS[:, :7].copy(), encoding)
    for same in (
        ROWS[:, :7],
        np.asfortranarray(ROWS)[:, :7],
        np.repeat(ROWS, 2, axis=0)[::2, :7],
        ROWS[:, :7].astype(">f4"),
    ):
        encoded = encode_rows(same, encoding)
        assert encoded.vectors == expected.vectors
        if expected.scales is not None:
            assert encoded.scales is not None
            assert encoded.scales.tolist() == expected.scales.tolist()


@pytest.mark.parametrize(("dimensions", "size"), [(1, 1), (7, 1), (8, 1), (9, 2), (384, 48)])
def test_a_binary_row_is_filled_up_to_whole_bytes(dimensions: int, size: int) -> None:
    """ceil(dimensions / 8) bytes a row, so that rows start at a byte."""
    rows = np.ones((3, dimensions), dtype=np.float32)
    assert len(encode_rows(rows, VectorEncoding.UBINARY).vectors) == 3 * size


def test_binary_ties_go_to_zero() -> None:
    """A bit is 1 above 0 only: neither zero nor minus zero."""
    rows = np.array([[0.0, -0.0, 1e-45, -1e-45, 1, -1, 0, 5]], dtype=np.float32)
    assert encode_rows(rows, VectorEncoding.UBINARY).vectors == bytes([0b00101001])


def test_half_precision_rounds_ties_to_even() -> None:
    """2049 and 2051 lie between two neighbours of float16: the even one wins."""
    rows = np.array([[2049, 2051, 2048.5, -2049]], dtype=np.float32)
    encoded = encode_rows(rows, VectorEncoding.FLOAT16).vectors
    assert struct.unpack("<4e", encoded) == (2048, 2052, 2048, -2048)


def test_values_beyond_half_precision_are_refused() -> None:
    """An infinite number is no answer: the encoding is to blame, and said so. 65504 still fits."""
    fits = np.array([[65504, -65519]], dtype=np.float32)
    encoded = encode_rows(fits, VectorEncoding.FLOAT16).vectors
    assert struct.unpack("<2e", encoded) == (65504, -65504)
    with pytest.raises(InvalidInput, match=r"65504.*70000") as raised:
        encode_rows(np.array([[1, 2], [-70000, 3]], dtype=np.float32), VectorEncoding.FLOAT16)
    assert raised.value.field == "encoding"


def decode_int8(rows: Float32) -> tuple[list[list[int]], list[float]]:
    encoded = encode_rows(rows, VectorEncoding.INT8)
    assert encoded.scales is not None
    assert encoded.scales.dtype == np.float32
    width = rows.shape[1]
    flat = struct.unpack(f"{rows.size}b", encoded.vectors)
    steps = [list(flat[at : at + width]) for at in range(0, len(flat), width)]
    return steps, encoded.scales.tolist()


@given(MATRICES)
def test_int8_keeps_every_value_to_half_a_step(rows: Float32) -> None:
    """Value ≈ byte × scale with scale = max|value| / 127; the largest is at ±127, none at -128."""
    steps, scales = decode_int8(rows)
    for row, bytes_, scale in zip(rows.tolist(), steps, scales, strict=True):
        largest = max(map(abs, row))
        assert scale == pytest.approx(largest / 127, rel=1e-6, abs=1e-45)
        assert all(-127 <= byte <= 127 for byte in bytes_)
        if scale >= 1e-37:  # below, float32 itself is coarse
            assert max(map(abs, bytes_)) == 127
            for value, byte in zip(row, bytes_, strict=True):
                assert abs(value - byte * scale) <= scale * 0.5001


def test_int8_rounds_ties_to_even() -> None:
    """With a scale of exactly 1, a half goes to the even neighbour."""
    steps, scales = decode_int8(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], dtype=np.float32))
    assert scales == [1.0]
    assert steps == [[127, 0, 2, 2, 0, -2]]


def test_int8_scales_each_row_by_itself() -> None:
    """A row's bytes do not depend on the rows beside it; a row of zeros stays zero."""
    steps, scales = decode_int8(np.array([[1, -1], [0, 0], [254, 127]], dtype=np.float32))
    assert steps == [[127, -127], [0, 0], [127, 64]]
    assert scales == pytest.approx([1 / 127, 0, 2])


@pytest.mark.parametrize("encoding", list(VectorEncoding))
def test_no_rows_are_no_bytes(encoding: VectorEncoding) -> None:
    """An empty matrix encodes to nothing, and to no scales."""
    encoded = encode_rows(np.zeros((0, 8), dtype=np.float32), encoding)
    assert encoded.vectors == b""
    assert encoded.scales is None or encoded.scales.shape == (0,)


@given(MATRICES)
def test_unit_length(rows: Float32) -> None:
    """Each row has norm 1 and its old direction; a row of zeros stays zero, nothing is NaN."""
    for row, unit in zip(rows.tolist(), unit_length(rows).tolist(), strict=True):
        norm = math.sqrt(math.fsum(value * value for value in row))
        if norm == 0:
            assert unit == row
        elif norm > 1e-6:  # below, as the reference: divided by at least 1e-12
            assert unit == pytest.approx([value / norm for value in row], abs=2e-6)


def test_a_slice_is_brought_to_unit_length_again() -> None:
    """The first dimensions of a unit vector are shorter than 1: Matryoshka needs them longer."""
    unit = unit_length(ROWS)
    sliced = shape_rows(unit, dimensions=7, normalize=True)
    assert sliced.shape == (5, 7)
    for row, whole in zip(sliced.tolist(), ROWS.tolist(), strict=True):
        norm = math.sqrt(math.fsum(value * value for value in whole[:7]))
        assert row == pytest.approx([value / norm for value in whole[:7]], abs=1e-6)


def test_without_normalising_rows_stay_bit_for_bit() -> None:
    """What the model gave is what the caller gets."""
    assert shape_rows(ROWS, dimensions=None, normalize=False).tobytes() == ROWS.tobytes()
    sliced = shape_rows(ROWS, dimensions=7, normalize=False)
    assert sliced.tobytes() == ROWS[:, :7].tobytes()


def test_all_dimensions_are_the_whole() -> None:
    """Asking for as many dimensions as there are is asking for nothing."""
    whole = shape_rows(ROWS, dimensions=19, normalize=True)
    assert whole.tobytes() == shape_rows(ROWS, dimensions=None, normalize=True).tobytes()
