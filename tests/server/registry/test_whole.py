"""What was begun is done whole, and its failure is not lost."""

from __future__ import annotations

import asyncio

import pytest

from shoal_server.registry.whole import WholeTasks
from tests.server.batching.fakes import settle


async def test_a_caller_that_is_cancelled_twice_still_waits() -> None:
    """By its deadline, and by gRPC: it does not leave before the work is done."""
    gate, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        done.set()

    caller = asyncio.create_task(WholeTasks().finish(work()))
    await settle()
    for _ in range(2):
        caller.cancel()
        await settle()
    assert not caller.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()


async def test_the_failure_goes_to_the_caller() -> None:
    """As it is."""

    async def work() -> None:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        await WholeTasks().finish(work())


async def test_closing_ends_what_is_left_and_who_waits_for_it() -> None:
    """So that nothing holds up the end of the server."""
    tasks = WholeTasks()
    caller = asyncio.create_task(tasks.finish(asyncio.Event().wait()))
    await settle()
    await tasks.close()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_a_failure_that_nobody_waits_for_is_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It would vanish without a word."""

    async def work() -> None:
        raise RuntimeError("nobody thought of this")

    WholeTasks().start(work())
    await settle()
    assert "nobody thought of this" in capsys.readouterr().out
