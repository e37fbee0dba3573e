"""Settings that are kept over restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal_server.errors import FailedPrecondition, InvalidInput
from shoal_server.kept_settings import KeptSettings
from shoal_server.registry.store import RecordStore
from shoal_server.runtime_settings import RuntimeSettings
from shoal_server.settings import Settings

PRESSURE = ("pressure_lower_threshold", "pressure_threshold", "pressure_critical_threshold")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@asynccontextmanager
async def server(path: Path, *changeable: str, **configured: Any) -> AsyncIterator[KeptSettings]:
    """The settings of a server from its start to its end."""
    store = await RecordStore.open(path)
    runtime = RuntimeSettings(Settings(**configured), lambda _: None)
    runtime.on_change(changeable or ("slow_request_ms", "drain_s", *PRESSURE), lambda _: None)
    kept = KeptSettings(runtime, store)
    kept.restore()
    try:
        yield kept
    finally:
        await store.close()


async def test_what_is_kept_is_there_after_a_restart(path: Path) -> None:
    """Stronger than what is configured; what is not kept is gone."""
    async with server(path) as before:
        await before.update({"slow_request_ms": "250"}, keep=True)
        await before.update({"drain_s": "1"}, keep=False)
        assert before.runtime.values.drain_s == 1
    async with server(path, slow_request_ms=500) as after:
        assert after.runtime.values.slow_request_ms == 250
        assert after.runtime.values.drain_s == 30
        assert after.names == {"slow_request_ms"}


async def test_the_configured_value_ends_it(path: Path) -> None:
    """From then on the configuration counts again."""
    async with server(path) as before:
        await before.update({"slow_request_ms": "250"}, keep=True)
        await before.update({"slow_request_ms": "1000"}, keep=True)
        assert before.names == set()
    async with server(path, slow_request_ms=500) as after:
        assert after.runtime.values.slow_request_ms == 500


async def test_what_is_refused_is_not_kept(path: Path) -> None:
    """Neither now nor after a restart."""
    async with server(path) as before:
        with pytest.raises(InvalidInput):
            await before.update({"drain_s": "1", "slow_request_ms": "0"}, keep=True)
        assert before.names == set()
    async with server(path) as after:
        assert after.runtime.values == Settings()


async def test_values_that_go_together_come_back_together(path: Path) -> None:
    """One by one each would contradict the others' defaults."""
    texts = dict(zip(PRESSURE, ("0.1", "0.2", "0.3"), strict=True))
    async with server(path) as before:
        await before.update(texts, keep=True)
    async with server(path) as after:
        assert after.runtime.values.pressure_critical_threshold == 0.3


async def test_what_makes_no_sense_any_more_is_left_out(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that a later version does not have, or can not change, ends no start."""
    async with server(path) as before:
        await before.update({"slow_request_ms": "250", "drain_s": "1"}, keep=True)
    async with server(path, "drain_s") as after:
        assert after.runtime.values.drain_s == 1
        assert after.names == {"drain_s"}
    assert "setting_left_out" in capsys.readouterr().out


async def test_those_that_go_together_come_back_beside_one_that_does_not(path: Path) -> None:
    """Whatever order they are in: what contradicts the others now may not once they are made."""
    for texts in (("0.1", "0.2", "0.3"), ("0.96", "0.97", "0.98")):
        async with server(path) as before:
            await before.update(dict(zip(PRESSURE, texts, strict=True)), keep=True)
            await before.update({"drain_s": "1"}, keep=True)
        async with server(path, *PRESSURE) as after:
            assert after.names == set(PRESSURE)
            assert [str(getattr(after.runtime.values, name)) for name in PRESSURE] == list(texts)


async def test_a_caller_that_leaves_meanwhile_leaves_nothing_half_done(path: Path) -> None:
    """What is kept holds, and is told to be kept."""
    async with server(path) as kept:
        caller = asyncio.create_task(kept.update({"drain_s": "1"}, keep=True))
        await asyncio.sleep(0)  # as far as to the store's thread
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert (kept.runtime.values.drain_s, kept.names) == (1, {"drain_s"})


async def test_where_nothing_can_be_written_nothing_is_kept(path: Path) -> None:
    """The caller is told, and the setting stays; without keeping it can be changed."""
    async with server(path), server(path) as second:
        with pytest.raises(FailedPrecondition, match="can not be kept"):
            await second.update({"drain_s": "1"}, keep=True)
        assert second.runtime.values.drain_s == 30
        await second.update({"drain_s": "1"}, keep=False)
        assert second.runtime.values.drain_s == 1
