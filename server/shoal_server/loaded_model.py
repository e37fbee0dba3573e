"""A model in memory, and what stays of it in RAM when it has left its GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from shoal_server.batching.batcher import Batcher
from shoal_server.batching.turns import Turns
from shoal_server.core import ModelKey
from shoal_server.errors import Unavailable
from shoal_server.inference.backend import Backend
from shoal_server.inference.bound_model import BoundModel
from shoal_server.inference.devices import CPU
from shoal_server.inference.graph_in_memory import GraphInMemory
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.inference.tokenizer import TextTokenizer
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.verification import Verification
from shoal_server.residency.probes import return_free_memory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Improvement:
    """Makes a model faster, in two steps; both block."""

    pack: Callable[[], Path | None]
    """Makes the packed form, if need be; for later loads, too. None: it can not be had."""
    adopt: Callable[[Path], None]
    """Lets the session go over to it."""


class LoadedModel:
    """A model in memory, ready to embed: what the pool holds and lends."""

    def __init__(
        self,
        version: ModelVersion,
        *,
        device: str,
        size_bytes: int,
        tokenizer: TextTokenizer,
        batcher: Batcher,
        turns: Turns,
        backend: Backend,
        executor: Executor,
        background_executor: Executor,
        improvement: Improvement | None,
        warm_form: WarmModel | None,
    ) -> None:
        """Put together by `ModelLoader`.

        Args:
            version: What is loaded.
            device: Where.
            size_bytes: What it takes.
            tokenizer: Of the model.
            batcher: Runs `backend`.
            turns: In which others than callers run it.
            backend: Closed with this.
            executor: Threads for blocking work.
            background_executor: For work that nobody waits for.
            improvement: Done in the background once somebody has had an answer.
            warm_form: What may stay of it in RAM.
        """
        self.version = version
        self.device = device
        self.size_bytes = size_bytes
        self.tokenizer = tokenizer
        self.batcher = batcher
        self._turns = turns
        self._backend = backend
        self._executor = executor
        self._background_executor = background_executor
        self._improvement = improvement
        self._improving: asyncio.Task[None] | None = None
        self._adopting: Future[None] | None = None
        # With a caller that leaves goes its lease, and the thread works on.
        self._shrinking: set[asyncio.Future[None]] = set()
        self._warm_form = warm_form

    @property
    def idle_s(self) -> float | None:
        """See `Session.idle_s`: what the model's own `model.toml` says."""
        serving = self.version.serving
        return serving.ram_idle_s if self.device == CPU else serving.gpu_idle_s

    def lease_ended(self) -> None:
        """Improve the backend, now that who waited for the load does not wait any longer."""
        if self._improvement is not None:
            improvement, self._improvement = self._improvement, None
            self._improving = asyncio.create_task(self._improve(improvement))

    async def _improve(self, improvement: Improvement) -> None:
        loop, executor = asyncio.get_running_loop(), self._background_executor
        packed = await loop.run_in_executor(executor, improvement.pack)
        if packed is not None:
            self._adopting = executor.submit(improvement.adopt, packed)
            await asyncio.wrap_future(self._adopting)

    def warm_form(self) -> WarmModel | None:
        """See `Session.warm_form`."""
        return self._warm_form

    async def improved(self) -> None:
        """Return when nothing is going on any more that makes the backend faster."""
        if self._improving is not None:
            await asyncio.wait({self._improving})

    async def run_beside(self, work: Callable[[Backend], T]) -> T:
        """Do `work` in a thread and a slot, in turn with the batches of callers.

        It counts in no statistics. For those who hold a lease.
        """
        return await self._turns.take(lambda: work(self._backend))

    async def shrink(self) -> None:
        """Give back memory that only runs need; nobody closes it meanwhile."""
        if isinstance(self._backend, OnnxModel | BoundModel):
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._executor, self._backend.shrink)
            self._shrinking.add(work)
            work.add_done_callback(self._shrinking.discard)
            await asyncio.shield(work)

    def abort(self, reason: Unavailable) -> None:
        """Fail the requests that wait, and take no more."""
        self.batcher.close(reason)

    async def close(self) -> None:
        """Free the memory; returns when the system has it back."""
        self.batcher.close(Unavailable(f"model {self.version.key} is being unloaded"))
        if self._improving is not None and (self._adopting is None or self._adopting.cancel()):
            # Packing that goes on needs nothing of this; what waits for its turn, maybe behind
            # another model's packing, never begins.
            self._improving.cancel()
        elif self._improving is not None:
            await asyncio.wait({self._improving})
        # Runs whose callers left may still be going on.
        await self.batcher.idle()
        await self._turns.idle()
        if self._shrinking:
            await asyncio.wait(self._shrinking)
        await asyncio.get_running_loop().run_in_executor(self._executor, self._free)

    def _free(self) -> None:
        self._backend.close()
        return_free_memory()


@dataclass(frozen=True, slots=True)
class Kept:
    """What a session is opened from, in RAM."""

    version: ModelVersion
    tokenizer: TextTokenizer
    files: Verification
    graph: GraphInMemory


class Keeper(Protocol):
    """Reads what is kept, and loads it again; see `loading.ModelLoader`."""

    def keep(self, version: ModelVersion, tokenizer: TextTokenizer) -> Kept:
        """Read what a version's session is opened from; blocks."""

    def is_current(self, kept: Kept) -> bool:
        """Whether a load would read the same files, as far as the registry knows."""

    async def load_kept(self, key: ModelKey, device: str, kept: Kept | None) -> LoadedModel:
        """Make a session of it, with the manifests as they are now."""


class WarmModel:
    """What stays in RAM of a model that left its GPU; see `WarmForm`.

    The tokenizer, open, and the files that its session is opened from, as they were
    verified. They are read when it leaves the GPU: until then RAM holds no copy.
    """

    def __init__(
        self, loader: Keeper, version: ModelVersion, tokenizer: TextTokenizer, size_bytes: int
    ) -> None:
        """Hold no files yet.

        Args:
            loader: Has loaded the model.
            version: What was loaded.
            tokenizer: Of it.
            size_bytes: What it takes when it is filled.
        """
        self.size_bytes = size_bytes
        self._loader = loader
        self._version = version
        self._tokenizer = tokenizer
        self._kept: Kept | None = None

    @property
    def key(self) -> ModelKey:
        """Of the model."""
        return self._version.key

    @property
    def idle_s(self) -> float | None:
        """See `WarmForm.idle_s`."""
        return self._version.serving.ram_idle_s

    async def fill(self) -> None:
        """See `WarmForm.fill`."""
        # Threads that load are for those who wait.
        self._kept = await asyncio.to_thread(self._loader.keep, self._version, self._tokenizer)

    async def is_current(self) -> bool:
        """See `WarmForm.is_current`; the files are looked at, not read."""
        kept = self._kept
        return (
            kept is not None
            and self._loader.is_current(kept)
            and await asyncio.to_thread(kept.files.still_holds)
        )

    async def load(self, device: str) -> LoadedModel:
        """See `WarmForm.load`."""
        return await self._loader.load_kept(self.key, device, self._kept)
