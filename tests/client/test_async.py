"""What only the asyncio client can do, or get wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from shoal_client import AsyncClient
from tests.client.fake import FakeServer, vector_of, vectors_of


async def test_many_tasks_share_a_client(fake: FakeServer) -> None:
    """Each of many concurrent callers gets its own vector."""
    texts = [f"text {number}" for number in range(200)]
    async with AsyncClient(fake.address) as client:
        results = await asyncio.gather(*(client.embed([text]) for text in texts))
    np.testing.assert_array_equal(vectors_of(texts), np.concatenate(results))


async def test_cancelled_task_cancels_its_call(fake: FakeServer) -> None:
    """The server hears of it, and other calls go on."""
    async with AsyncClient(fake.address) as client:
        fake.hold(text="held")
        call = asyncio.create_task(client.embed(["held"]))
        await asyncio.to_thread(fake.held.get, timeout=10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(fake.cancelled.get, timeout=10)
        np.testing.assert_array_equal([vector_of("b")], await client.embed(["b"]))


async def test_cancelled_task_cancels_all_parts(fake: FakeServer) -> None:
    """A split call leaves nothing running."""
    async with AsyncClient(fake.address) as client:
        fake.hold()
        call = asyncio.create_task(client.embed(["a"] * 300))
        for _ in range(3):
            await asyncio.to_thread(fake.held.get, timeout=10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        for _ in range(3):
            await asyncio.to_thread(fake.cancelled.get, timeout=10)


async def test_asynchronous_iterables(fake: FakeServer) -> None:
    """embed_iter takes what only `async for` can read."""
    texts = [f"text {number}" for number in range(100)]

    async def arriving() -> AsyncIterator[str]:
        for text in texts:
            await asyncio.sleep(0)
            yield text

    async with AsyncClient(fake.address) as client:
        rows = [row async for row in client.embed_iter(arriving(), chunk_size=7)]
    np.testing.assert_array_equal(vectors_of(texts), rows)


async def test_cancelled_bulk_job_cancels_its_stream(fake: FakeServer) -> None:
    """A job that is cancelled while it waits for an answer leaves no stream behind."""
    fake.stream_group = 2  # so that a single request is never answered

    async def run(client: AsyncClient) -> None:
        async for _ in client.embed_iter(["a"]):
            pass

    async with AsyncClient(fake.address) as client:
        job = asyncio.create_task(run(client))
        await asyncio.to_thread(fake.streamed.get, timeout=10)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await asyncio.to_thread(fake.stream_ends.get, timeout=10)


def test_client_may_be_made_before_the_loop_runs(fake: FakeServer) -> None:
    """A module-level client works in the loop that is started later."""
    client = AsyncClient(fake.address)

    async def main() -> int:
        async with client:
            return len(await client.embed(["a"]))

    assert asyncio.run(main()) == 1
