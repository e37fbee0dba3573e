"""Rows as they are written on the command line."""

from __future__ import annotations

import pytest

from loadtests.rows import FULL, QUICK, Row, parse_rows


def test_rows_are_read() -> None:
    """Several, with and without streams."""
    assert parse_rows("short:64x1,mixed:8x32:stream") == [
        Row("short", 64, 1),
        Row("mixed", 8, 32, stream=True),
    ]


@pytest.mark.parametrize("text", ["", "short", "long:1x1", "short:0x1", "short:1x1:unary"])
def test_what_is_no_row_is_refused(text: str) -> None:
    """The message says what was given and what is wanted."""
    with pytest.raises(ValueError, match="is not WORKLOAD:CALLERSxTEXTS"):
        Row.parse(text)


def test_the_usual_rows_are_each_measured_once() -> None:
    """A row twice would be counted twice."""
    assert len(set(FULL)) == len(FULL)
    assert set(QUICK) < set(FULL)
