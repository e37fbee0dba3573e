"""A switch that does not come to its end changes nothing, and one that was begun does."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import (
    FailedPrecondition,
    InvalidInput,
    ModelLoadFailed,
    ModelNotFound,
    NotPersisted,
    UpdateFailed,
)
from shoal_server.registering import Registrar
from shoal_server.registry.findings import Finding, FoundBy, KnownBad, fingerprint
from shoal_server.registry.index import RepositoryIndex
from shoal_server.registry.labels import Deprecation, Labels
from shoal_server.registry.meanings import NamedTarget
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import Change, RecordStore
from shoal_server.switching import Switcher
from tests.server.batching.fakes import settle
from tests.server.residency.fakes import CPU, Bench, Gate, Published
from tests.tiny_model import make_tiny_model

ONE, TWO = ModelKey("tiny", "1"), ModelKey("tiny", "2")


class GatedStore(RecordStore):
    """A store whose writes wait at gates, and fail when told to."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))
        self.gates: defaultdict[str, Gate] = defaultdict(Gate)
        """By what is written."""
        self.is_full = False
        self.written: list[Change] = []

    async def write(self, *changes: Change) -> None:
        await self.gates[changes[0].key].passed()
        if self.is_full:
            raise NotPersisted("the disk is full")
        self.written += changes


class OnCpu:
    """Places everything there."""

    def device_for(self, *_: object, **__: object) -> str:
        return CPU


@dataclass
class Parts:
    """A switcher and what it works with; the alias stands for the first version."""

    switcher: Switcher
    registry: Registry
    bench: Bench
    store: GatedStore
    published: Published

    def switch(self, key: ModelKey, alias: str = "prod") -> asyncio.Task[Any]:
        target = NamedTarget(ModelRef(key.name, key.version), 1)
        return asyncio.create_task(self.switcher.switch(alias, [target]))

    def deregister(self) -> asyncio.Task[None]:
        registrar = Registrar(
            self.registry,
            RepositoryIndex(self.registry),
            cast(Any, self.bench.pool),
            self.store,
            self.published,
            self.bench.states.came,
            lambda _: None,
        )
        return asyncio.create_task(registrar.deregister("tiny"))

    def meaning(self) -> ModelKey:
        version = self.registry.meanings.known("prod")
        assert version is not None
        return version.key

    def assert_unchanged(self) -> None:
        assert self.meaning() == ONE
        assert len(self.registry.aliases["prod"].revisions) == 1
        assert len(self.published.events) == 1
        leases = [each and each.leases for each in map(self.bench.pool.get, (ONE, TWO))]
        assert not any(leases)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    for version in ("1", "2"):
        make_tiny_model(tmp_path, version=version)
    registry, bench = Registry(ModelRepository(tmp_path), "tiny"), Bench()
    store, published = GatedStore(), Published()
    switcher = Switcher(registry, cast(Any, bench.pool), cast(Any, OnCpu()), store, published)
    parts = Parts(switcher, registry, bench, store, published)
    await parts.switch(ONE)
    yield parts
    await switcher.close()
    bench.pool.check_integrity()


async def test_a_caller_that_leaves_while_it_loads_has_changed_nothing(parts: Parts) -> None:
    """No lease is left, and the next switch goes through."""
    gate = parts.bench.loader.load_gates[TWO]
    gate.close()
    switching = parts.switch(TWO)
    await gate.reached.wait()
    switching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await switching
    parts.assert_unchanged()
    gate.open()
    await parts.switch(TWO)
    assert parts.meaning() == TWO


async def test_the_old_version_serves_until_the_new_one_is_there(parts: Parts) -> None:
    """And can not be evicted meanwhile: the switch has a lease of it."""
    gate = parts.bench.loader.load_gates[TWO]
    gate.close()
    switching = parts.switch(TWO)
    await gate.reached.wait()
    assert parts.meaning() == ONE
    resident = parts.bench.pool.get(ONE)
    assert resident is not None
    assert not resident.evictable
    gate.open()
    await switching
    assert parts.meaning() == TWO


async def test_a_caller_that_leaves_while_it_is_written_does_not_stop_the_change(
    parts: Parts,
) -> None:
    """What is on disk is what is served, and watchers hear of it."""
    gate = parts.store.gates["prod"]
    gate.close()
    gate.reached.clear()
    switching = parts.switch(TWO)
    await gate.reached.wait()
    switching.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await switching
    assert parts.meaning() == TWO
    assert len(parts.published.events) == 2
    assert len(parts.store.written) == 2


async def test_a_change_that_can_not_be_written_is_not_made(parts: Parts) -> None:
    """Nor told to anybody but the caller."""
    parts.store.is_full = True
    with pytest.raises(NotPersisted):
        await parts.switch(TWO)
    parts.assert_unchanged()


async def test_a_version_that_fails_to_load_changes_nothing(parts: Parts) -> None:
    """The reason goes to the caller."""
    parts.bench.loader.errors[TWO] = [ModelLoadFailed("no such operator")]
    with pytest.raises(ModelLoadFailed, match="no such operator"):
        await parts.switch(TWO)
    parts.assert_unchanged()


async def test_a_name_is_given_no_version_that_is_refused(parts: Parts) -> None:
    """By a switch, a rollback or a pin: every request for it would fail. Before its date it is."""
    await parts.switch(TWO)
    refused = Labels(deprecation=Deprecation(0.0, refuse_after_s=1.0))
    parts.registry.label(ModelRef("tiny", "1"), refused)
    changes = (
        parts.switch(ONE),
        parts.switcher.roll_back("prod"),
        parts.switcher.set_version_policy("tiny", "1"),
    )
    for change in changes:
        with pytest.raises(FailedPrecondition, match="tiny@1 is deprecated; refused after"):
            await change
    assert (parts.meaning(), parts.registry.pins) == (TWO, {})
    served = Labels(deprecation=Deprecation(0.0, refuse_after_s=1e11))
    parts.registry.label(ModelRef("tiny", "1"), served)
    await parts.switch(ONE)
    assert parts.meaning() == ONE


async def test_what_another_switch_is_about_to_point_at_is_not_taken_away(parts: Parts) -> None:
    """Its callers would wait for the load: no name means it yet, and one will in a moment."""
    gate = parts.store.gates["canary"]
    gate.close()
    canary = parts.switch(ONE, "canary")
    await gate.reached.wait()
    await parts.switch(TWO)
    await settle()
    gate.open()
    await canary
    await settle()
    assert parts.bench.pool.lease_resident(ONE) is not None


async def test_what_leaves_memory_after_a_switch_is_not_waited_for_by_it(parts: Parts) -> None:
    """An unloading waits for the switch, which does not wait for it in its turn."""
    await parts.bench.use(ONE)
    gate = parts.bench.loader.load_gates[TWO]
    gate.close()
    targets = [NamedTarget(ModelRef(key.name, key.version), 1) for key in (TWO, ONE)]
    switch = asyncio.create_task(parts.switcher.switch("prod", targets))
    await gate.reached.wait()
    unload = asyncio.create_task(parts.bench.pool.unload(ONE))
    await settle()
    gate.open()
    await asyncio.wait_for(switch, timeout=5.0)
    await unload
    assert parts.bench.pool.get(ONE) is None


async def test_a_policy_is_of_a_model_and_not_of_a_version(parts: Parts) -> None:
    """The field is named, whether it is pinned or unpinned."""
    for version in ("1", None):
        with pytest.raises(InvalidInput) as raised:
            await parts.switcher.set_version_policy("tiny@1", version)
        assert raised.value.field == "model"


async def test_what_is_deregistered_while_it_loads_gets_no_name(parts: Parts) -> None:
    """The alias would answer NOT_FOUND, after a restart too."""
    await parts.switcher.remove_alias("prod")
    gate = parts.bench.loader.load_gates[TWO]
    gate.close()
    switching = parts.switch(TWO)
    await gate.reached.wait()
    deregistering = parts.deregister()
    await parts.store.gates["tiny"].reached.wait()
    await settle()
    gate.open()
    with pytest.raises(ModelNotFound, match="deregistered"):
        await switching
    await deregistering
    assert "prod" not in parts.registry.aliases
    assert [change.key for change in parts.store.written] == ["prod", "prod", "tiny"]


@pytest.mark.parametrize("first", ["switch", "deregister"])
async def test_of_a_switch_and_a_deregistration_one_is_made(parts: Parts, first: str) -> None:
    """The one that is written first; the other one is refused."""
    await parts.switcher.remove_alias("prod")
    held = parts.store.gates["prod" if first == "switch" else "tiny"]
    held.reached.clear()
    held.close()
    begin = {"switch": lambda: parts.switch(ONE), "deregister": parts.deregister}
    tasks = {first: begin.pop(first)()}
    await held.reached.wait()
    ((second, start),) = begin.items()
    tasks[second] = start()
    await settle()
    held.open()
    done = await asyncio.gather(*tasks.values(), return_exceptions=True)
    outcomes = dict(zip(tasks, done, strict=True))
    assert not isinstance(outcomes[first], Exception)
    assert isinstance(outcomes[second], FailedPrecondition | ModelNotFound)
    assert ("prod" in parts.registry.aliases) == (first == "switch")
    assert ("tiny" in parts.registry.deregistered) == (first == "deregister")


async def test_an_update_that_was_overtaken_is_no_fault_of_the_version(parts: Parts) -> None:
    """It is tried again another time: a newer one came, or somebody pinned the name."""
    with pytest.raises(UpdateFailed, match="another one than 1"):
        await parts.switcher.update(ONE)
    await parts.switcher.set_version_policy("tiny", "1")
    with pytest.raises(UpdateFailed):
        await parts.switcher.update(TWO)


async def test_an_unpinned_name_does_not_mean_what_was_found_bad_meanwhile(
    parts: Parts, tmp_path: Path
) -> None:
    """It is noted while the change that chose the version is written."""
    found: dict[str, KnownBad] = {}
    parts.registry.found = found
    gate = parts.store.gates["tiny"]
    gate.reached.clear()
    gate.close()
    unpinning = asyncio.create_task(parts.switcher.set_version_policy("tiny", None))
    await gate.reached.wait()
    files = fingerprint(parts.registry.repository, TWO)
    found["tiny"] = {"2": Finding("it can not be loaded", FoundBy.LOADING, files)}
    gate.open()
    await unpinning
    assert (await parts.registry.resolve("tiny")).key == ONE
