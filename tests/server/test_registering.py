"""What counts as new to a server that has not read all of its models yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal_server.registering import Registrar
from shoal_server.registry.index import RepositoryIndex
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import RecordStore
from tests.server.residency.fakes import Bench, Published
from tests.tiny_model import make_tiny_model


async def test_only_what_came_after_the_first_look_is_added(tmp_path: Path) -> None:
    """A model that was there then is known, though nobody has read it yet."""
    make_tiny_model(tmp_path, "early")
    bench, published = Bench(), Published()
    registry = Registry(ModelRepository(tmp_path), "early")
    index = RepositoryIndex(registry)
    pool: Any = bench.pool
    registrar = Registrar(
        registry, index, pool, RecordStore(tmp_path / ".db"), published, lambda _: None
    )
    assert await index.names() == ["early"]
    make_tiny_model(tmp_path, "late")
    added = [(await registrar.register(name)).added for name in ("early", "late", "late")]
    assert added == [False, True, False]
    await bench.shut_down()
