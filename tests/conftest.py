"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from .running import RunningServer

# An example that takes long says something about the machine's other load only, and
# what a run finds the next one must find too.
hypothesis.settings.register_profile("shoal", deadline=None, derandomize=True)
hypothesis.settings.load_profile("shoal")


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """One real server with the default model, shared: leave it as you found it."""
    with RunningServer() as running:
        yield running
