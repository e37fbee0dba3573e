"""Writing embeddings to files, a chunk at a time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from shoal_client.results import Embeddings, Vectors

# Decimal digits that read back as the same number: IEEE 754-2019, 5.12.2.
_DIGITS = {"float32": 9, "float16": 5}
_SPOOL_BYTES = 64 * 1024 * 1024


class Writer(Protocol):
    """Takes embeddings in order."""

    def write(self, chunk: Embeddings) -> None:
        """Append the rows of a chunk."""

    def finish(self) -> None:
        """Complete the file; nothing may be written after."""


class JsonlWriter:
    """One JSON object a line: `index`, `model`, `tokens`, `truncated`, `embedding`.

    `model` is the "name@version" that ran. Those of int8 have a `scale`, too.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._index = 0

    def write(self, chunk: Embeddings) -> None:
        """Append a line for each row."""
        truncated, model = set(chunk.truncated), f"{chunk.model}@{chunk.version}"
        for number, row in enumerate(chunk.vectors):
            line = {
                "index": self._index,
                "model": model,
                "tokens": chunk.token_counts[number],
                "truncated": number in truncated,
                "embedding": _plain_numbers(row),
            }
            if chunk.scales is not None:
                line["scale"] = float(chunk.scales[number])
            self._file.write(json.dumps(line).encode() + b"\n")
            self._index += 1
        self._file.flush()  # a reader at the other end of a pipe goes on at once

    def finish(self) -> None:
        """Nothing is left to do."""


class NpyWriter:
    """NumPy's .npy format: one array of all rows, without the scales of int8.

    The number of rows, which stands first, is known last: rows go to a file that
    can be rewound.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._rows = 0
        self._width = 0
        self._dtype = np.dtype("<f4")

    def write(self, chunk: Embeddings) -> None:
        """Append the rows."""
        if self._rows == 0:
            self._dtype, self._width = chunk.vectors.dtype, chunk.vectors.shape[1]
            self._write_header()
        self._rows += len(chunk)
        self._file.write(chunk.vectors.data)

    def finish(self) -> None:
        """Put the number of rows into the header."""
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header so that the first axis may grow in place.
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._rows, self._width),
            },
        )


@contextmanager
def complete_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is complete, and else not at all.

    Raises:
        OSError: It can not be written.
    """
    if path.exists() and not path.is_file():  # a device or a pipe
        with path.open("wb") as file:
            yield file
        return
    partial = path.with_name(path.name + ".part")
    new = _open_partial(partial, path)
    try:
        with new:
            yield new
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open_partial(partial: Path, path: Path) -> IO[bytes]:
    try:
        return partial.open("wb")
    except OSError as error:  # which names a file that the user never heard of
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def rewindable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file that can be rewound, copied to `file`, which can not, at the end."""
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        yield spool
        spool.seek(0)
        shutil.copyfileobj(spool, file)
        file.flush()


def _plain_numbers(row: Vectors) -> list[float]:
    digits = _DIGITS.get(row.dtype.name)
    numbers: list[float] = row.tolist()
    # What a double shows beyond these digits is no part of the value.
    return numbers if digits is None else [float(f"{number:.{digits}g}") for number in numbers]
