"""What there is, while the disk changes under it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from shoal_server.catalog import Catalog
from shoal_server.inference.devices import AvailableDevices
from shoal_server.placement import Placement
from shoal_server.registry.memory_pins import MemoryPins
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import RecordStore
from shoal_server.residency.probes import Gpus
from tests.server.residency.fakes import Bench
from tests.tiny_model import make_tiny_model


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    for name in ("one", "two"):
        make_tiny_model(tmp_path, name)
    return ModelRepository(tmp_path)


@pytest.fixture
async def catalog(repository: ModelRepository) -> Catalog:
    pins = MemoryPins(RecordStore(Path("nowhere")))
    placement = Placement(AvailableDevices(0, "", gpu_expected=False), Gpus(), "auto")
    bench = Bench()
    registry = Registry(repository, "one")
    return Catalog(registry, cast(Any, bench.pool), placement, pins, bench.states)


async def test_a_model_that_is_removed_while_all_are_listed_is_left_out(
    catalog: Catalog, repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are there all the same."""
    monkeypatch.setattr(repository, "names", lambda: ["gone", "one", "two"])
    versions = repository.versions

    def without_gone(name: str) -> list[str]:
        if name == "gone":
            monkeypatch.setattr(repository, "names", lambda: ["one", "two"])
        return versions(name)

    monkeypatch.setattr(repository, "versions", without_gone)
    assert [each.name for each in await catalog.all()] == ["one", "two"]


async def test_the_disk_is_not_read_on_the_event_loop(
    catalog: Catalog, repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk holds up whoever asks about models, not those who embed."""
    expected = repository.size_bytes("one", "1")
    readers = set[threading.Thread]()
    read_text = Path.read_text

    def watched(path: Path, encoding: str) -> str:
        readers.add(threading.current_thread())
        return read_text(path, encoding)

    monkeypatch.setattr(Path, "read_text", watched)
    chosen = (await catalog.get("one")).chosen
    assert chosen is not None
    assert expected == chosen.file_bytes
    assert readers
    assert threading.main_thread() not in readers
