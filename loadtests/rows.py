"""What is measured in a closed loop: workload, callers, texts a request, how it is sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.workloads import SPECS

_FORM = re.compile(r"(\w+):(\d+)x(\d+)(:stream)?")


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """So many callers, each with so many texts a request, in a closed loop."""

    workload: str
    callers: int
    texts: int
    stream: bool = False

    def __str__(self) -> str:
        return f"{self.workload} {self.callers} × {self.texts}{' stream' if self.stream else ''}"

    @classmethod
    def parse(cls, text: str) -> Row:
        """Read `short:64x1` or `short:64x1:stream`.

        Raises:
            ValueError: It is neither, or the workload is unknown.
        """
        match = _FORM.fullmatch(text.strip())
        if not match or match[1] not in SPECS or not int(match[2]) or not int(match[3]):
            raise ValueError(
                f"{text!r} is not WORKLOAD:CALLERSxTEXTS[:stream], with a workload of "
                f"{', '.join(SPECS)}"
            )
        return cls(match[1], int(match[2]), int(match[3]), bool(match[4]))


def parse_rows(text: str) -> list[Row]:
    """Rows, comma-separated."""
    return [Row.parse(part) for part in text.split(",")]


def _matrix(workload: str, shapes: Sequence[tuple[int, int]]) -> list[Row]:
    return [Row(workload, *shape, stream) for shape in shapes for stream in (False, True)]


# mixed 64 × 32 has 2,048 texts in flight, 16 s of work on two cores: on request only.
_SHAPES = ((1, 1), (8, 1), (64, 1), (1, 32), (8, 32))
FULL = (
    *_matrix("short", _SHAPES),
    Row("short", 64, 32),
    *_matrix("mixed", _SHAPES),
    Row("medium", 64, 1),
    Row("medium", 8, 32),
)
QUICK = (
    *(Row("short", *shape) for shape in ((1, 1), (8, 1), (64, 1), (1, 32), (8, 32))),
    Row("short", 64, 1, stream=True),
    *(Row("mixed", *shape) for shape in ((64, 1), (8, 32))),
)
