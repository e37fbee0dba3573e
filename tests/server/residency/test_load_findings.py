"""Which failures of loads are held against a version, and against which of its files."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import (
    AllocationFailed,
    ModelFileCorrupt,
    ModelLoadFailed,
    ModelNotFound,
    ModelUnusable,
    ShoalError,
)
from shoal_server.lifecycle import Load, LoadReason
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.findings import Findings, FoundBy
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import RecordStore
from shoal_server.residency.load_findings import LoadFindings
from shoal_server.residency.loads import failure_of
from tests.tiny_model import make_tiny_model

ONE, TWO = ModelKey("tiny", "1"), ModelKey("tiny", "2")


@dataclass
class Desk:
    """Two versions of a model, and who hears how their loads ended."""

    registry: Registry
    findings: Findings
    observer: LoadFindings

    async def fail(self, error: ShoalError) -> None:
        """Let a load of the newest end so; returns when that is noted."""
        self.observer.load_ended(Load(TWO, "cpu", LoadReason.ASKED, 0.1, 0, error))
        await self.observer.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    for version in ("1", "2"):
        make_tiny_model(tmp_path, version=version)
    repository, conditions = ModelRepository(tmp_path), Conditions()
    store = await RecordStore.open(tmp_path / ".shoal.db")
    findings = Findings(repository, conditions, store)
    registry = Registry(repository, "tiny", found=findings.by_model)
    await registry.resolve("tiny")
    observer = LoadFindings(findings, registry, conditions)
    yield Desk(registry, findings, observer)
    await observer.close()
    await findings.close()
    await store.close()


@pytest.mark.parametrize(
    ("error", "is_bad"),
    [
        (ModelUnusable("the graph can not run"), True),
        (ModelFileCorrupt("its SHA-256 differs"), True),
        (AllocationFailed("there is no memory"), False),
        (ModelLoadFailed("ONNX Runtime could not use cuda:0"), False),
        (failure_of(TWO, OSError(errno.EMFILE, "Too many open files")), False),
    ],
)
async def test_only_what_lies_in_its_files_is_held_against_a_version(
    desk: Desk, error: ShoalError, is_bad: bool
) -> None:
    """What passes by itself leaves what the bare name means."""
    await desk.fail(error)
    assert (await desk.registry.resolve("tiny")).key == (ONE if is_bad else TWO)


async def test_a_version_prepared_anew_is_not_bad_for_what_it_was(
    desk: Desk, tmp_path: Path
) -> None:
    """A load of the manifests as they were fails; the next request gets the new files."""
    (tmp_path / "tiny" / "2").rename(tmp_path / "away")
    make_tiny_model(tmp_path, version="2", seed=2)
    await desk.fail(ModelFileCorrupt("its SHA-256 differs"))
    assert (await desk.registry.resolve("tiny")).key == TWO
    assert desk.findings.of(TWO) is None


async def test_a_load_that_goes_well_meanwhile_is_not_forgotten(desk: Desk) -> None:
    """What an earlier load is about to be noted for is refuted by a later one."""
    noting = desk.observer
    noting.load_ended(Load(TWO, "cpu", LoadReason.ASKED, 0.1, 0, ModelUnusable("no graph")))
    await asyncio.sleep(0)
    noting.load_ended(Load(TWO, "cpu", LoadReason.ASKED, 0.1, 0))
    await noting.close()
    assert desk.findings.of(TWO) is None


async def test_a_model_deregistered_meanwhile_is_not_noted(desk: Desk) -> None:
    """Nobody knows any longer what its load was made of."""
    desk.registry.deregister("tiny")
    await desk.fail(ModelUnusable("no graph"))
    assert desk.findings.of(TWO) is None
    with pytest.raises(ModelNotFound):
        await desk.registry.resolve("tiny")


async def test_two_that_find_the_same_are_both_done_when_it_is_known(desk: Desk) -> None:
    """A start notes what it could not load, and so does the load."""
    desk.observer.load_ended(Load(TWO, "cpu", LoadReason.ASKED, 0.1, 0, ModelUnusable("no graph")))
    for _ in range(2):
        noting = asyncio.create_task(desk.findings.note(TWO, "no graph", FoundBy.LOADING))
        await desk.findings.note(TWO, "no graph", FoundBy.LOADING)
        assert desk.findings.of(TWO) is not None
        await noting
