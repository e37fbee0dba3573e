"""What counts as new to a server that has not read all of its models yet."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any, cast

from shoal_server.composition.models import _served
from shoal_server.core import ModelKey
from shoal_server.registering import Registrar
from shoal_server.registry.index import RepositoryIndex
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import RecordStore
from tests.server.residency.fakes import CPU, Bench, Published
from tests.tiny_model import make_tiny_model


async def test_only_what_came_after_the_first_look_is_added(tmp_path: Path) -> None:
    """A model that was there then is known, though nobody has read it yet."""
    make_tiny_model(tmp_path, "early")
    bench, published = Bench(), Published()
    registry = Registry(ModelRepository(tmp_path), "early")
    index = RepositoryIndex(registry)
    pool: Any = bench.pool
    registrar = Registrar(
        registry,
        index,
        pool,
        RecordStore(tmp_path / ".db"),
        published,
        bench.states.came,
        lambda _: None,
    )
    assert await index.names() == ["early"]
    make_tiny_model(tmp_path, "late")
    added = [(await registrar.register(name)).added for name in ("early", "late", "late")]
    assert added == [False, True, False]
    await bench.shut_down()


async def test_a_model_that_comes_back_while_it_is_still_loaded_is_there(tmp_path: Path) -> None:
    """It was deregistered while it came into memory, and is asked for before it has left."""
    make_tiny_model(tmp_path)
    key, bench = ModelKey("tiny", "1"), Bench()
    registry = Registry(ModelRepository(tmp_path), "tiny")
    registry.served = partial(_served, registry, cast(Any, bench.pool))
    await registry.resolve("tiny")
    gate = bench.loader.load_gates[key]
    gate.close()
    loading = asyncio.create_task(bench.pool.load(key, CPU))
    await gate.reached.wait()
    registry.deregister("tiny")
    registry.register("tiny")
    assert (await registry.resolve("tiny")).key == key
    gate.open()
    await loading
    await bench.shut_down()
