"""Servers for the tests of the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.running import RunningServer
from tests.tiny_model import TinyModel, make_tiny_model

from .calls import Connection, unharmed


@pytest.fixture(scope="module")
def real(server: RunningServer) -> Iterator[Connection]:
    """A connection to the shared server; after the module it must be unharmed."""
    with unharmed(server) as connection:
        yield connection


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny model in a repository of its own."""
    return make_tiny_model(tmp_path_factory.mktemp("models"))
