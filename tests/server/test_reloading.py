"""Reading a model's files again, and whoever wants it meanwhile."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from shoal_server.core import ModelKey
from shoal_server.errors import ModelLoadFailed
from shoal_server.registry.conditions import Conditions
from shoal_server.reloading import Reloader
from tests.server.residency.fakes import CPU, A, Bench, Published

WAIT_S = 10


@dataclass(frozen=True)
class Version:
    """As much of a `ModelVersion` as is looked at."""

    key: ModelKey
    revision: int
    files: tuple[str, ...] = ()
    serving: ClassVar[Any] = SimpleNamespace(device="", pinned=False)


class Disk:
    """A registry and its repository. Verifying lasts until a test lets it go on."""

    def __init__(self) -> None:
        self.repository = self
        self.adopted = Version(A, 1)
        self.verifying, self.may_go_on = threading.Event(), threading.Event()

    def targets(self, text: str) -> list[Any]:
        return [SimpleNamespace(ref=text)]

    async def resolve(self, text: str) -> Version:
        return self.adopted

    def version(self, key: ModelKey) -> Version:
        return self.adopted

    async def look_up(self, ref: object) -> Version:
        return Version(A, 2)

    def adopt(self, version: Version) -> None:
        self.adopted = version

    def open_next(self, version: Version) -> None:
        """The loader here asks nobody."""

    def verify_files(self, name: str, version: str, files: object) -> None:
        self.verifying.set()
        assert self.may_go_on.wait(WAIT_S)


class Nothing:
    """Knows of nothing bad."""

    def loaded(self, key: ModelKey) -> None:
        """As it was known."""

    async def drop_outdated(self, key: ModelKey) -> None:
        """There is nothing."""

    def of(self, key: ModelKey) -> None:
        """Nothing is."""


async def test_what_came_into_memory_meanwhile_is_read_again_too() -> None:
    """A request that comes while files are verified does not leave the old ones in memory."""
    bench, disk = Bench(), Disk()
    registry: Any = disk
    pool: Any = bench.pool
    placement: Any = SimpleNamespace(device_for=lambda *_, **__: CPU)
    findings: Any = Nothing()
    reloader = Reloader(
        registry, pool, placement, Conditions(), findings, cast(Any, None), Published(),
        lambda key: None,
    )  # fmt: skip
    reloading = asyncio.create_task(reloader.reload("a"))
    assert await asyncio.to_thread(disk.verifying.wait, WAIT_S)
    await bench.use(A)
    (old,) = bench.loader.sessions
    disk.may_go_on.set()
    (done,) = await reloading
    assert (done.device, disk.adopted.revision) == (CPU, 2)
    with await bench.acquire(A) as lease:
        assert lease.session is not old
    await bench.shut_down()


class BrokenDisk(Disk):
    """Its files are not what was prepared."""

    def verify_files(self, name: str, version: str, files: object) -> None:
        super().verify_files(name, version, files)
        raise ModelLoadFailed("too many open files")


async def test_a_failure_does_not_undo_what_was_loaded_meanwhile() -> None:
    """Names mean it as the session was made, not as it was before the files were read again."""
    bench, disk = Bench(), BrokenDisk()
    registry: Any = disk
    pool: Any = bench.pool
    findings: Any = Nothing()
    reloader = Reloader(
        registry, pool, cast(Any, None), Conditions(), findings, cast(Any, None), Published(),
        lambda key: None,
    )  # fmt: skip
    reloading = asyncio.create_task(reloader.reload("a"))
    assert await asyncio.to_thread(disk.verifying.wait, WAIT_S)
    await bench.use(A)
    (session,) = bench.loader.sessions
    cast(Any, session).version = Version(A, 2)
    disk.may_go_on.set()
    with pytest.raises(ModelLoadFailed):
        await reloading
    assert disk.adopted.revision == 2
    await bench.shut_down()
