"""From answers to what the caller gets. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from grpc_health.v1.health_pb2 import HealthCheckResponse

from shoal.v1.embed_pb2 import EmbedResponse, Timings
from shoal_client.requests import ENCODINGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_DTYPES: Mapping[str, str] = {"float32": "<f4", "float16": "<f2", "int8": "i1", "ubinary": "u1"}
_NAMES: Mapping[int, str] = {value: name for name, value in ENCODINGS.items()}

Vectors = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Embeddings:
    """The vectors of one call, with what they cost.

    Serves as the array itself: `np.asarray(result)`, `len(result)`, `result[0]`
    and iteration give its rows.

    Attributes:
        vectors: float32[N, D], or float16[N, D], int8[N, D], or, for "ubinary",
            uint8[N, ceil(D / 8)]; one row an input, in order. Read-only where it
            is a view of the answer; `vectors.copy()` can be changed.
        dimensions: D.
        encoding: "float32", "float16", "int8" or "ubinary".
        scales: float32[N] for "int8" (value = byte * scale); else None.
        token_counts: Tokens that the model saw for each input.
        truncated: Indices of the inputs that were cut, ascending.
        model: The model that ran.
        version: The version that ran.
        timings: Where the time went, in microseconds; of a call that was split,
            the largest of each over its parts; of a call that shared a request,
            that request's.
        request_id: Id of the call, or of the request it shared, in the server's
            logs.
        deprecation: That the model should not be used any longer, and what to use
            instead; empty when it is not deprecated.
    """

    vectors: Vectors
    dimensions: int
    encoding: str
    scales: npt.NDArray[np.float32] | None
    token_counts: tuple[int, ...]
    truncated: tuple[int, ...]
    model: str
    version: str
    timings: Timings
    request_id: str
    deprecation: str = ""

    def to_float32(self) -> npt.NDArray[np.float32]:
        """float32[N, D], whatever the encoding.

        int8 is scaled back; the bits of ubinary become -1 and 1, whose dot
        product counts dimensions of the same sign minus those of different sign.
        """
        if self.scales is not None:
            return self.vectors.astype(np.float32) * self.scales[:, np.newaxis]
        if self.encoding == "ubinary":
            bits = np.unpackbits(self.vectors, axis=1, count=self.dimensions)
            return bits.astype(np.float32) * 2 - 1
        return self.vectors.astype(np.float32, copy=False)

    def __array__(self, dtype: npt.DTypeLike | None = None, *, copy: bool | None = None) -> Vectors:
        if copy is None:
            return np.asarray(self.vectors, dtype=dtype)
        return np.array(self.vectors, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[Vectors]:
        return iter(self.vectors)

    def __getitem__(self, index: Any) -> Vectors:
        rows: Vectors = self.vectors[index]
        return rows

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.vectors.shape))
        return (
            f"Embeddings({self.vectors.dtype}[{shape}], model={self.model}@{self.version}, "
            f"tokens={sum(self.token_counts)}, truncated={len(self.truncated)})"
        )


class HealthStatus(StrEnum):
    """Whether a service, or a model, takes requests."""

    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    UNKNOWN = "UNKNOWN"
    """The server does not know the service."""


def health_status(response: HealthCheckResponse) -> HealthStatus:
    """What a health check said."""
    if response.status == HealthCheckResponse.SERVING:
        return HealthStatus.SERVING
    if response.status == HealthCheckResponse.NOT_SERVING:
        return HealthStatus.NOT_SERVING
    return HealthStatus.UNKNOWN


def decode(response: EmbedResponse, request_id: str) -> Embeddings:
    """Read an answer; the vectors are a view of its bytes, not a copy."""
    encoding = _NAMES[response.encoding]
    dimensions = response.dimensions
    width = -(-dimensions // 8) if encoding == "ubinary" else dimensions
    # Copied, since a part of a message keeps all of it, vectors too, in memory.
    timings = Timings()
    timings.CopyFrom(response.timings)
    return Embeddings(
        vectors=np.frombuffer(response.vectors, _DTYPES[encoding]).reshape(-1, width),
        dimensions=dimensions,
        encoding=encoding,
        scales=np.array(response.scales, np.float32) if response.scales else None,
        token_counts=tuple(response.token_counts),
        truncated=tuple(response.truncated),
        model=response.model,
        version=response.version,
        timings=timings,
        request_id=request_id,
        deprecation=response.deprecation,
    )


def no_embeddings(dimensions: int, encoding: str) -> Embeddings:
    """A result without rows, which has the width and dtype of others."""
    return decode(EmbedResponse(dimensions=dimensions, encoding=ENCODINGS[encoding]), "")


def join(parts: Sequence[Embeddings]) -> Embeddings:
    """One result from the results of a call's parts, in order."""
    first = parts[0]
    if len(parts) == 1:
        return first
    truncated: list[int] = []
    offset = 0
    for part in parts:
        truncated += [offset + index for index in part.truncated]
        offset += len(part)
    return Embeddings(
        vectors=np.concatenate([part.vectors for part in parts]),
        dimensions=first.dimensions,
        encoding=first.encoding,
        scales=_join_scales(parts),
        token_counts=tuple(count for part in parts for count in part.token_counts),
        truncated=tuple(truncated),
        model=first.model,
        version=first.version,
        timings=_largest([part.timings for part in parts]),
        request_id=first.request_id,
        deprecation=first.deprecation,
    )


def select(result: Embeddings, start: int, stop: int) -> Embeddings:
    """The rows from `start` to `stop` as a result of their own.

    Copied, so that whoever keeps them keeps no others in memory.
    """
    cuts = slice(bisect_left(result.truncated, start), bisect_left(result.truncated, stop))
    timings = Timings()
    timings.CopyFrom(result.timings)
    return Embeddings(
        vectors=result.vectors[start:stop].copy(),
        dimensions=result.dimensions,
        encoding=result.encoding,
        scales=None if result.scales is None else result.scales[start:stop].copy(),
        token_counts=result.token_counts[start:stop],
        truncated=tuple(index - start for index in result.truncated[cuts]),
        model=result.model,
        version=result.version,
        timings=timings,
        request_id=result.request_id,
        deprecation=result.deprecation,
    )


def _join_scales(parts: Sequence[Embeddings]) -> npt.NDArray[np.float32] | None:
    scales = [part.scales for part in parts if part.scales is not None]
    return np.concatenate(scales) if scales else None


def _largest(timings: Sequence[Timings]) -> Timings:
    names = [field.name for field in Timings.DESCRIPTOR.fields]
    return Timings(**{name: max(getattr(timing, name) for timing in timings) for name in names})
