"""Profiles over restarts, each for its own setup."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import NotPersisted
from shoal_server.profiling.kept import KeptProfiles
from shoal_server.profiling.plan import Shape
from shoal_server.profiling.profile import Cell, Profile, Setup, Skipped, Suggestion
from shoal_server.registry.store import Change, RecordStore

SETUP = Setup(
    key=ModelKey("m", "1"),
    precision="fp32",
    device="cpu",
    hardware="a CPU",
    runtime="1.31.1",
    threads=1,
    graph="0123",
)
PROFILE = Profile(
    setup=SETUP,
    slots=2,
    measured_at_s=1000.25,
    duration_s=3.5,
    running_s=0.5,
    max_share=0.2,
    batch_items_limit=32,
    batch_tokens_limit=8192,
    cells=(
        Cell(Shape(1, 8), 10, 0.0009, 0.001, 0.002, 77),
        Cell(Shape(2, 8), 3, 0.001, 0.0015, 0.002),
    ),
    skipped=(Skipped(Shape(64, 512), "too large"),),
    suggestion=Suggestion(2, 16, ("because", "of this")),
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RecordStore]:
    store = await RecordStore.open(tmp_path / "state.db")
    yield store
    await store.close()


async def reopened(store: RecordStore, tmp_path: Path) -> KeptProfiles:
    """What another server finds."""
    await store.close()
    again = await RecordStore.open(tmp_path / "state.db")
    await again.close()
    return KeptProfiles(again)


async def test_a_profile_outlasts_the_server(store: RecordStore, tmp_path: Path) -> None:
    """In every field, with a suggestion and without."""
    bare = replace(PROFILE, setup=replace(SETUP, device="cuda:0"), suggestion=None)
    kept = KeptProfiles(store)
    await kept.keep(PROFILE)
    await kept.keep(bare)
    later = await reopened(store, tmp_path)
    for found in (kept, later):
        assert found.get(SETUP) == PROFILE
        assert found.get(bare.setup) == bare


@pytest.mark.parametrize(
    "other",
    [
        {"key": ModelKey("m", "2")},
        {"precision": "int8"},
        {"device": "cuda:0"},
        {"hardware": "another CPU"},
        {"runtime": "1.32.0"},
        {"threads": 2},
        {"graph": "4567"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_it_is_not_true_for_another_setup(
    store: RecordStore, other: dict[str, object]
) -> None:
    """Whatever is another one."""
    kept = KeptProfiles(store)
    await kept.keep(PROFILE)
    assert kept.get(replace(SETUP, **other)) is None  # type: ignore[arg-type]


async def test_a_new_one_takes_the_place_of_the_last(store: RecordStore, tmp_path: Path) -> None:
    """Of the same setup."""
    kept = KeptProfiles(store)
    await kept.keep(PROFILE)
    newer = replace(PROFILE, measured_at_s=2000.0, cells=PROFILE.cells[:1])
    await kept.keep(newer)
    later = await reopened(store, tmp_path)
    assert later.of(SETUP.key) == kept.of(SETUP.key) == [newer]


async def test_they_are_bounded(store: RecordStore, tmp_path: Path) -> None:
    """Of one version the last eight stay; those of others do not count."""
    kept = KeptProfiles(store)
    other = replace(PROFILE, setup=replace(SETUP, key=ModelKey("n", "1")))
    await kept.keep(other)
    for number in range(10):
        setup = replace(SETUP, runtime=f"1.{number}")
        await kept.keep(replace(PROFILE, setup=setup, measured_at_s=2000.0 + number))
    later = await reopened(store, tmp_path)
    assert [each.setup.runtime for each in later.of(SETUP.key)] == [f"1.{n}" for n in range(2, 10)]
    assert later.get(other.setup) == other


class FullDisk(RecordStore):
    """A store whose disk refuses every write."""

    async def write(self, *changes: Change) -> None:
        raise NotPersisted("the disk is full")


async def test_it_is_told_where_a_profile_is_not_on_disk(
    store: RecordStore, tmp_path: Path
) -> None:
    """Because the disk is full, or another server has the file; it is kept in memory then."""
    assert await KeptProfiles(store).keep(PROFILE) == ""
    full = KeptProfiles(FullDisk(tmp_path / "full.db"))
    assert await full.keep(PROFILE) == "the disk is full"
    second = await RecordStore.open(tmp_path / "state.db")
    beside = KeptProfiles(second)
    newer = replace(PROFILE, measured_at_s=2000.0)
    assert "another server" in await beside.keep(newer)
    assert (full.get(SETUP), beside.get(SETUP)) == (PROFILE, newer)
    await second.close()


async def test_a_record_that_makes_no_sense_is_left_out(store: RecordStore, tmp_path: Path) -> None:
    """The others are there."""
    kept = KeptProfiles(store)
    await kept.keep(PROFILE)
    await store.write(Change("profile", "m@1/x", {"setup": "?"}))
    later = await reopened(store, tmp_path)
    assert later.of(SETUP.key) == [PROFILE]
