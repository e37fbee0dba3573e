"""How often the server tries by itself what failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import UpdateFailed
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.events import Event, ModelUpdateFailed
from shoal_server.registry.manifest import MODEL_FILE, ModelManifest
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.residency.resident import State
from shoal_server.updating import Updater
from tests.tiny_model import make_tiny_model

INTERVAL_S = 60.0


class Hub:
    """Fails to give what is newer, and remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, name: str) -> None:
        self.asked.append(name)
        raise UpdateFailed("the hub does not answer")


class Bench:
    """An updater of one model in memory, and a hub that fails."""

    def __init__(self, root: Path) -> None:
        make_tiny_model(root)
        self.model_file = root / "tiny" / MODEL_FILE
        self.model_file.write_text(ModelManifest(source="org/tiny").to_toml())
        self.registry = Registry(ModelRepository(root), "tiny")
        self.conditions = Conditions()
        self.hub = Hub()
        self.now_s = 0.0
        self.events: list[Event] = []
        resident = SimpleNamespace(key=ModelKey("tiny", "1"), state=State.READY)
        self.updater = Updater(
            self.registry,
            cast(Any, SimpleNamespace(residents=lambda: [resident])),
            cast(Any, None),
            cast(Any, None),
            self.conditions,
            cast(Any, SimpleNamespace(publish=self.events.append)),
            self.hub,
            retry_after_s=INTERVAL_S,
            clock=lambda: self.now_s,
        )


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    await bench.registry.resolve("tiny")
    return bench


async def test_a_hub_that_fails_is_asked_less_and_less(bench: Bench) -> None:
    """After the interval, twice that, four times that; each failure is told."""
    asked_at_s: list[int] = []
    for second in range(0, 481, 30):
        bench.now_s = float(second)
        before = len(bench.hub.asked)
        await bench.updater.look("hub")
        asked_at_s += [second] * (len(bench.hub.asked) - before)
    assert asked_at_s == [0, 60, 180, 420]
    told = [each for each in bench.events if isinstance(each, ModelUpdateFailed)]
    assert [(each.key, each.candidate) for each in told] == [(ModelKey("tiny", "1"), "")] * 4


@pytest.mark.parametrize("source", ["", "pypi:package", "./folder", "/models/tiny"])
async def test_what_is_not_of_the_hub_is_not_looked_for(bench: Bench, source: str) -> None:
    """By itself; who asks for it is told why not."""
    bench.model_file.write_text(ModelManifest(source=source).to_toml())
    await bench.updater.look("hub")
    assert bench.hub.asked == []
    with pytest.raises(UpdateFailed):
        await bench.updater.update("tiny", "hub")


async def test_a_name_that_is_not_to_move_is_left_alone(bench: Bench) -> None:
    """model.toml says what it means: nothing is asked, and nothing told each time."""
    bench.model_file.write_text(ModelManifest(source="org/tiny", default_version="1").to_toml())
    await bench.updater.look("hub")
    assert (bench.hub.asked, bench.events) == ([], [])


async def test_who_asks_for_an_update_does_not_wait(bench: Bench) -> None:
    """The back-off is for what the server does by itself."""
    for _ in range(3):
        with pytest.raises(UpdateFailed):
            await bench.updater.update("tiny", "hub")
    assert bench.hub.asked == ["tiny"] * 3


async def test_it_shows_while_something_newer_is_prepared(bench: Bench) -> None:
    """And not any longer afterwards, though it failed."""
    seen: list[str | None] = []
    bench.conditions.observe(lambda key: seen.append(bench.conditions.of(key).downloading))
    await bench.updater.look("hub")
    assert seen == ["a newer version is looked for", None]
