"""A fake server, and both clients behind one face."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any, Protocol, cast

import pytest

from shoal_client import AsyncClient, Client
from shoal_client.retry import Clock
from tests.client.fake import FakeServer


class BlockingClient:
    """An AsyncClient used as a Client, by any thread, so that one test speaks for both."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if isinstance(result, AsyncGenerator):
                return self._generator(result)
            return self._run(result)

        return call

    def end(self) -> None:
        """Close the client and end its loop."""
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._loop).result()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()

    def _generator(self, items: AsyncGenerator[Any, None]) -> Generator[Any, None, None]:
        try:
            while True:
                try:
                    item = self._run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self._run(items.aclose())


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


class FakeTime:
    """A clock that moves only when somebody waits.

    Attributes:
        now_s: What the clock shows.
        waits_s: How long each wait was.
    """

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waits_s: list[float] = []

    def clock(self) -> Clock:
        async def sleep(seconds: float) -> None:
            self.wait(seconds)

        return Clock(
            now=lambda: self.now_s,
            random=lambda: 0.5,
            wait=lambda _, seconds: self.wait(seconds),
            sleep=sleep,
        )

    def wait(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.now_s += seconds


class Connect(Protocol):
    """Makes a client for a test, which closes it."""

    def __call__(self, *addresses: str, **options: Any) -> Client: ...


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture(params=[Client, AsyncClient])
def connect(request: pytest.FixtureRequest, fake: FakeServer, time: FakeTime) -> Iterator[Connect]:
    """Clients of either kind, of the fake server unless told otherwise."""
    clients: list[Any] = []

    def make(*addresses: str, **options: Any) -> Client:
        options.setdefault("clock", time.clock())
        client = request.param(addresses or fake.address, **options)
        clients.append(BlockingClient(client) if request.param is AsyncClient else client)
        return cast("Client", clients[-1])

    yield make
    for client in clients:
        if isinstance(client, BlockingClient):
            client.end()
        else:
            client.close()


@pytest.fixture
def client(connect: Connect) -> Client:
    """A client of either kind that talks to the fake server."""
    return connect()
