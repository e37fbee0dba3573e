"""From the model's rows to the bytes of an answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal_server.core import VectorEncoding
from shoal_server.errors import InvalidInput

Float32 = npt.NDArray[np.float32]

# As torch.nn.functional.normalize: a zero vector stays zero.
_NORM_MIN = np.float32(1e-12)
_INT8_MAX = np.float32(127)
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as they go over the wire."""

    vectors: bytes
    """Row-major, little-endian."""
    scales: Float32 | None = None
    """float32[N] for int8, else None."""


def unit_length(rows: Float32) -> Float32:
    """Divide each row by its L2 norm; a zero row stays zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True).astype(np.float32)
    scaled: Float32 = rows / np.maximum(norms, _NORM_MIN)
    return scaled


def shape_rows(rows: Float32, *, dimensions: int | None, normalize: bool) -> Float32:
    """Cut to the first `dimensions` and bring to unit length.

    A slice of a unit vector is shorter than 1, so a Matryoshka slice must be
    normalised again (Kusupati et al. 2022, "Matryoshka Representation Learning").

    Args:
        rows: float32[N, D].
        dimensions: At most D; None keeps all.
        normalize: Whether the rows returned have unit length.

    Returns:
        float32[N, dimensions].
    """
    if dimensions is not None:
        rows = rows[:, :dimensions]
    return unit_length(rows) if normalize else rows


def encode_rows(rows: Float32, encoding: VectorEncoding) -> EncodedRows:
    """Encode float32[N, D] as `embed.proto` says for each `VectorEncoding`.

    Raises:
        InvalidInput: A value is too large for the encoding asked for.
    """
    match encoding:
        case VectorEncoding.FLOAT32:
            return EncodedRows(rows.astype("<f4", copy=False).tobytes())
        case VectorEncoding.FLOAT16:
            return EncodedRows(_half(rows).tobytes())
        case VectorEncoding.INT8:
            scales = np.abs(rows).max(axis=1) / _INT8_MAX
            steps = rows / np.where(scales > 0, scales, np.float32(1))[:, None]
            quantized = np.clip(np.rint(steps), -_INT8_MAX, _INT8_MAX).astype(np.int8)
            return EncodedRows(quantized.tobytes(), scales.astype(np.float32))
        case VectorEncoding.UBINARY:
            return EncodedRows(np.packbits(rows > 0, axis=1).tobytes())


def _half(rows: Float32) -> npt.NDArray[np.float16]:
    """As float16[N, D]; refused rather than infinite where a value is too large for it."""
    with np.errstate(over="ignore"):
        halves = rows.astype("<f2")
    if not np.isfinite(halves).all():
        raise InvalidInput(
            "encoding",
            f"float16 holds values up to {_HALF_MAX:.0f}, these vectors have {np.abs(rows).max():g}"
            " (ask for float32, or normalize)",
        )
    return halves
