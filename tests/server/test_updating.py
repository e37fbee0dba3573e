"""How often the server tries by itself what failed, and what a try leaves behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from shoal_server.core import ModelKey
from shoal_server.errors import (
    FailedPrecondition,
    ModelLoadFailed,
    NothingToCompare,
    NotPersisted,
    ShoalError,
    UpdateFailed,
)
from shoal_server.registry.accuracy import Accuracy
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.events import Event, ModelUpdateFailed
from shoal_server.registry.findings import Findings
from shoal_server.registry.manifest import MODEL_FILE, ModelManifest
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import RecordStore
from shoal_server.residency.resident import State
from shoal_server.switching import Switcher
from shoal_server.updating import Updater
from tests.server.residency.fakes import CPU, Published
from tests.server.residency.fakes import Bench as PoolBench
from tests.tiny_model import make_tiny_model

INTERVAL_S = 60.0


class Hub:
    """Fails to give what is newer, and remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.has_newer = False

    async def __call__(self, name: str, began: Callable[[], object]) -> None:
        self.asked.append(name)
        if self.has_newer:
            began()
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
            Findings(self.registry.repository, self.conditions, RecordStore(root / ".db")),
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
    """Not while that is looked for, and not any longer afterwards, though it failed."""
    seen: list[str | None] = []
    bench.conditions.observe(lambda key: seen.append(bench.conditions.of(key).downloading))
    await bench.updater.look("hub")
    assert seen == []
    bench.hub.has_newer = True
    with suppress(UpdateFailed):
        await bench.updater.update("tiny", "hub")
    assert seen == ["a newer version", None]


ONE, TWO = ModelKey("tiny", "1"), ModelKey("tiny", "2")


class Judge:
    """A verifier that says what it is told to; something else happens meanwhile."""

    def __init__(self) -> None:
        self.says: Accuracy | ShoalError = replace(GOOD, problem="worse")
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def verify_version(self, _: object) -> Accuracy:
        if self.meanwhile is not None:
            await self.meanwhile()
        if isinstance(self.says, ShoalError):
            raise self.says
        return self.says


GOOD = Accuracy(4, 1.0, 1.0, None, 1.0, 0.001, "", "tests 1", "fp32", 0.0, 0.1)


@dataclass
class Parts:
    """An updater whose sessions are fakes; the first version is in memory, a second came."""

    updater: Updater
    judge: Judge
    bench: PoolBench
    store: RecordStore
    registry: Registry

    def is_in_memory(self) -> bool:
        return self.bench.pool.get(TWO) is not None


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    make_tiny_model(tmp_path)
    bench, store, published = PoolBench(), RecordStore(tmp_path / ".db"), Published()
    repository = ModelRepository(tmp_path)
    findings = Findings(repository, bench.conditions, store)
    registry = Registry(repository, "tiny", found=findings.by_model)
    pool: Any = bench.pool
    placement: Any = SimpleNamespace(device_for=lambda *_, **__: CPU)
    switcher = Switcher(registry, pool, placement, store, published)
    judge = Judge()
    verifier: Any = judge
    await registry.resolve("tiny")
    await bench.use(ONE)
    make_tiny_model(tmp_path, version="2")
    updater = Updater(
        registry, pool, switcher, verifier, bench.conditions, findings, published, Hub(),
        retry_after_s=INTERVAL_S, clock=lambda: bench.now_s,
    )  # fmt: skip
    yield Parts(updater, judge, bench, store, registry)
    await switcher.close()
    await findings.close()
    await bench.shut_down()


async def test_a_version_that_is_no_good_leaves_memory(parts: Parts) -> None:
    """Where nobody but the update has asked for it."""
    with pytest.raises(FailedPrecondition, match="worse"):
        await parts.updater.update("tiny", "repository")
    assert not parts.is_in_memory()


@pytest.mark.parametrize("how", ["used", "pinned"])
async def test_one_that_somebody_wants_meanwhile_stays(parts: Parts, how: str) -> None:
    """By name and version it can be had, good or not."""

    async def want() -> None:
        if how == "used":
            await parts.bench.use(TWO)
        else:
            parts.bench.pool.pin(TWO, True)

    parts.judge.meanwhile = want
    with pytest.raises(FailedPrecondition, match="worse"):
        await parts.updater.update("tiny", "repository")
    assert parts.is_in_memory()


@pytest.mark.parametrize("is_full", [False, True])
async def test_it_is_told_of_an_update_when_it_is_made(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """One without vectors to compare it with is in the log when the name means it, not before."""

    async def refuse(*_: object) -> None:
        raise NotPersisted("the disk is full")

    parts.judge.says = NothingToCompare("no vectors are kept with it")
    if is_full:
        monkeypatch.setattr(parts.store, "write", refuse)
    with capture_logs() as logged, suppress(NotPersisted):
        await parts.updater.update("tiny", "repository")
    told = [each["event"] for each in logged]
    assert ("updated_unverified" in told) == (not is_full)
    assert ("switched" in told) == (not is_full)


async def test_a_device_that_fails_for_a_while_is_no_fault_of_the_version(parts: Parts) -> None:
    """After the interval it is tried again, though nobody has touched its files."""
    parts.judge.says = ModelLoadFailed("ONNX Runtime could not use cuda:0")
    await parts.updater.look("repository")
    parts.judge.says = GOOD
    await parts.updater.look("repository")
    assert (await parts.registry.resolve("tiny")).key == ONE
    parts.bench.now_s += INTERVAL_S
    await parts.updater.look("repository")
    assert (await parts.registry.resolve("tiny")).key == TWO
