"""Preparing in another process, seen from the server."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from shoal_server.errors import UpdateFailed
from shoal_server.pulling import NewerPull
from tests.tiny_model import make_tiny_model


async def test_what_it_says_is_the_reason(tmp_path: Path) -> None:
    """Its last line, without the command's name."""
    make_tiny_model(tmp_path, "local")
    with pytest.raises(UpdateFailed, match=r"^the model.toml of local names no source$"):
        await NewerPull(tmp_path, timeout_s=60)("local")


async def test_it_is_bounded_in_time(tmp_path: Path) -> None:
    """It is ended then, with all that it started."""
    make_tiny_model(tmp_path, "local")
    with pytest.raises(UpdateFailed, match=r"longer than 0\.01 s$"):
        await NewerPull(tmp_path, timeout_s=0.01)("local")
    assert psutil.Process().children() == []
