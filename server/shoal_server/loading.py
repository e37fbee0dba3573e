"""Brings a model version into memory: verify, open, warm up, measure.

Everything that blocks happens in a thread of the loader's; what is made there is
handed to the event loop whole.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from shoal_server.batching.batcher import Batcher, BatchObserver
from shoal_server.batching.cost import CostModel
from shoal_server.batching.policy import BatchLimits
from shoal_server.batching.slots import Slots
from shoal_server.batching.warm_up import warm_up, warm_up_shapes
from shoal_server.core import ModelKey
from shoal_server.errors import (
    AllocationFailed,
    InferenceFailed,
    ModelLoadFailed,
    ShoalError,
    Unavailable,
)
from shoal_server.inference.backend import Backend
from shoal_server.inference.bound_model import BoundModel
from shoal_server.inference.cuda import CudaOptions
from shoal_server.inference.devices import CPU
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.inference.packed import PackedCache, packed_key
from shoal_server.inference.packing import save_packed
from shoal_server.inference.tokenizer import TextTokenizer
from shoal_server.registry.manifest import TOKENIZER_FILE
from shoal_server.registry.registry import ModelVersion, Registry
from shoal_server.registry.verification import Verification
from shoal_server.residency.probes import Gpus, resident_set_bytes, return_free_memory

log = structlog.get_logger(__name__)

# A session on the CPU takes its weights, a part of them again in packed form, and
# the runtime's own structures (docs/performance.md: 126 MB for a file of 90 MB).
_BYTES_PER_FILE_BYTE = 1.35
_BYTES_OF_RUNTIME = 8 * 1024 * 1024


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
        backend: Backend,
        executor: Executor,
        background_executor: Executor,
        improve: Callable[[], None] | None,
    ) -> None:
        """Put together by `ModelLoader`.

        Args:
            version: What is loaded.
            device: Where.
            size_bytes: What it takes.
            tokenizer: Of the model.
            batcher: Runs `backend`.
            backend: Closed with this.
            executor: Threads for blocking work.
            background_executor: For work that nobody waits for.
            improve: Makes the backend faster; blocking, and done in the background
                once somebody has had an answer.
        """
        self.version = version
        self.device = device
        self.size_bytes = size_bytes
        self.tokenizer = tokenizer
        self.batcher = batcher
        self._backend = backend
        self._executor = executor
        self._background_executor = background_executor
        self._improve = improve
        self._improving: asyncio.Future[None] | None = None

    @property
    def idle_s(self) -> float | None:
        """See `Session.idle_s`: what the model's own `model.toml` says."""
        serving = self.version.serving
        return serving.ram_idle_s if self.device == CPU else serving.gpu_idle_s

    def lease_ended(self) -> None:
        """Improve the backend, now that who waited for the load does not wait any longer."""
        if self._improve is not None:
            improve, self._improve = self._improve, None
            self._improving = asyncio.get_running_loop().run_in_executor(
                self._background_executor, improve
            )

    async def shrink(self) -> None:
        """Give back memory that only runs need; nobody closes it meanwhile."""
        if isinstance(self._backend, OnnxModel):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, self._backend.shrink)

    def abort(self, reason: Unavailable) -> None:
        """Fail the requests that wait, and take no more."""
        self.batcher.close(reason)

    async def close(self) -> None:
        """Free the memory; returns when the system has it back."""
        self.batcher.close(Unavailable(f"model {self.version.key} is being unloaded"))
        if self._improving is not None:
            await asyncio.wait({self._improving})
        # Runs whose callers left may still be going on.
        await self.batcher.idle()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._free)

    def _free(self) -> None:
        self._backend.close()
        return_free_memory()


@dataclass(frozen=True, slots=True)
class _Opened:
    """What the loading thread hands over."""

    tokenizer: TextTokenizer
    backend: Backend
    cost: CostModel
    size_bytes: int
    improve: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How models are opened and batched unless their manifest says otherwise."""

    intra_op_threads: int
    wide_threads: int
    """Threads of a run that has the CPU to itself."""
    verify_files: bool
    cuda: CudaOptions
    limits: BatchLimits
    """On the CPU."""
    cuda_limits: BatchLimits
    max_queue_s: float
    priority_head_start_s: float


class ModelLoader:
    """Loads the versions that the registry knows, for the session pool."""

    def __init__(
        self,
        registry: Registry,
        *,
        options: LoadOptions,
        slots: dict[str, Slots],
        run_executor: Executor,
        load_executor: Executor,
        background_executor: Executor,
        gpus: Gpus,
        cache: PackedCache | None,
        observer: Callable[[ModelKey], BatchObserver],
    ) -> None:
        """Wire what sessions share.

        Args:
            registry: Knows the versions.
            options: How to open and batch.
            slots: By device.
            run_executor: Threads that run batches; as many as there are slots.
            load_executor: Threads that load and close.
            background_executor: For work that nobody waits for.
            gpus: For measuring what a session takes.
            cache: Of packed graphs, for the CPU; None does without.
            observer: Makes the batch observer of a model version.
        """
        self._registry = registry
        self._options = options
        self._slots = slots
        self._run_executor = run_executor
        self._load_executor = load_executor
        self._background_executor = background_executor
        self._gpus = gpus
        self._cache = cache
        self._observer = observer
        self._loading = 0

    def predict_bytes(self, key: ModelKey, device: str) -> int:
        """Size in memory, from the size of the files."""
        file_bytes = self._registry.version(key).file_bytes
        if device != CPU:
            return file_bytes
        return int(file_bytes * _BYTES_PER_FILE_BYTE) + _BYTES_OF_RUNTIME

    def predict_peak_bytes(self, key: ModelKey, device: str) -> int:
        """Size in memory, and the graph's file once more: it is read whole before it is opened.

        A graph of 256 MB with its weights inside takes up to 519 MB while it is opened;
        weights beside it are mapped.
        """
        try:
            graph_bytes = self._registry.version(key).graph.stat().st_size
        except OSError:
            graph_bytes = 0  # loading will say what is wrong with it
        return self.predict_bytes(key, device) + graph_bytes

    async def load(self, key: ModelKey, device: str) -> LoadedModel:
        """Load a version; see `SessionLoader.load`."""
        version = self._registry.version(key)
        self._loading += 1
        try:
            opened = await asyncio.get_running_loop().run_in_executor(
                self._load_executor, self._open, version, device
            )
        except ShoalError as error:
            _release_locals(error)
            raise
        finally:
            self._loading -= 1
        batcher = Batcher(
            opened.backend,
            limits=self._limits(version, device),
            max_queue_s=self._options.max_queue_s,
            cost=opened.cost,
            slots=self._slots[device],
            executor=self._run_executor,
            observer=self._observer(key),
            priority_head_start_s=self._options.priority_head_start_s,
            clock=time.monotonic,
        )
        return LoadedModel(
            version,
            device=device,
            size_bytes=opened.size_bytes,
            tokenizer=opened.tokenizer,
            batcher=batcher,
            backend=opened.backend,
            executor=self._load_executor,
            background_executor=self._background_executor,
            improve=opened.improve,
        )

    def change(self, options: LoadOptions, loaded: Iterable[LoadedModel]) -> None:
        """Go by other options from now on.

        Args:
            options: For what is loaded from now on.
            loaded: In memory now; their batches are formed by the new options, too.
        """
        self._options = options
        for model in loaded:
            model.batcher.change(
                self._limits(model.version, model.device),
                max_queue_s=options.max_queue_s,
                priority_head_start_s=options.priority_head_start_s,
            )

    def _limits(self, version: ModelVersion, device: str) -> BatchLimits:
        options, theirs = self._options, version.serving
        ours = options.limits if device == CPU else options.cuda_limits
        wait_ms = theirs.max_wait_ms
        # Vectors that depend on their batch mates: each text has none.
        alone = not (version.chosen.batch_invariant or theirs.allow_mixing)
        return BatchLimits(
            max_items=1 if alone else theirs.max_batch_items or ours.max_items,
            max_tokens=theirs.max_batch_tokens or ours.max_tokens,
            max_padding_waste=ours.max_padding_waste,
            max_wait_s=ours.max_wait_s if wait_ms is None else wait_ms / 1000,
        )

    def _open(self, version: ModelVersion, device: str) -> _Opened:
        """In a thread of the loader's."""
        cache = self._cache if device == CPU else None
        source = self._look_at(version, cache)
        before = self._used_bytes(device)
        with ThreadPoolExecutor(1, thread_name_prefix="shoal-verify") as beside:
            verifying = self._verify(source, beside)
            try:
                tokenizer, backend, cost = self._open_parts(source, cache, device)
            finally:
                # A file that is not what was prepared explains whatever the runtime said.
                verifying.result()
        size_bytes = self._measure(version, device, before)

        def improve() -> None:
            assert isinstance(backend, OnnxModel)  # noqa: S101  (there is a cache for the CPU only)
            self._improve(backend, source)

        return _Opened(tokenizer, backend, cost, size_bytes, improve if cache else None)

    def _look_at(self, version: ModelVersion, cache: PackedCache | None) -> _Source:
        key = packed_key(version.files)
        checked = cache.verified(key) if cache else {}
        files = Verification(self._registry.repository, version, checked)
        if not self._options.verify_files:
            # Nobody compares SHA-256: what was written to counts as another graph.
            key = packed_key({path: str(seen) for path, seen in files.signatures.items()})
        return _Source(version, key, files)

    def _verify(self, source: _Source, beside: Executor) -> Future[None]:
        """Check the graph now and its weights meanwhile."""
        if not self._options.verify_files:
            return beside.submit(lambda: None)
        source.files.check_graph()
        return beside.submit(source.files.check_weights)

    def _open_parts(
        self, source: _Source, cache: PackedCache | None, device: str
    ) -> tuple[TextTokenizer, OnnxModel | BoundModel, CostModel]:
        version = source.version
        manifest = version.manifest
        packed = cache.find(source.key) if cache else None
        try:
            tokenizer = _open_tokenizer(version)
            token_id = min(tokenizer.pad_id, manifest.vocabulary_size - 1)
            if device == CPU:
                backend = self._open_graph(version, packed, tokenizer.pad_id)
                return tokenizer, backend, warm_up(backend, token_id, manifest.max_tokens)
            bound = self._open_on_gpu(version, device, tokenizer.pad_id)
            limits = self._limits(version, device)
            shapes = bound.buckets.all(limits.max_items, limits.max_tokens)
            return (
                tokenizer,
                bound,
                warm_up_shapes(bound, token_id, shapes, runs_at_once=self._slots[device].count),
            )
        except ModelLoadFailed as error:
            # Tokenizer and runtime know no names.
            raise type(error)(f"model {version.key}: {error.message}") from error
        except InferenceFailed as error:
            # A graph that can not run at all: remembered, not loaded for every request.
            raise ModelLoadFailed(f"model {version.key}: {error.message}") from error
        except MemoryError as error:
            raise AllocationFailed(f"model {version.key}: out of memory") from error

    def _open_on_gpu(self, version: ModelVersion, device: str, pad_id: int) -> BoundModel:
        return BoundModel.open(
            version.graph,
            device=device,
            cuda=self._options.cuda,
            pad_id=pad_id,
            max_tokens=version.manifest.max_tokens,
            dimensions=version.manifest.dimensions,
            lanes=self._slots[device].count,
        )

    def _open_graph(self, version: ModelVersion, packed: Path | None, pad_id: int) -> OnnxModel:
        def open_(path: Path) -> OnnxModel:
            threads = self._options.intra_op_threads
            return OnnxModel.open(path, threads=threads, pad_id=pad_id, packed=path is packed)

        if packed is not None:
            try:
                return open_(packed)
            except AllocationFailed:
                raise
            except ModelLoadFailed as error:
                # Another load, or another server, may have trimmed it just now.
                log.warning("packed_graph_unusable", model=str(version.key), error=error.message)
        return open_(version.graph)

    def _improve(self, backend: OnnxModel, source: _Source) -> None:
        """Pack the graph where that was not done before, and go over to it."""
        assert self._cache is not None  # noqa: S101
        model = str(source.version.key)
        verified = source.files.checked() if self._options.verify_files else {}
        try:
            packed = self._cache.find(source.key)
            if packed is None:
                packed = self._cache.make(source.key, verified, source.save_packed)
            else:
                self._cache.note_verified(source.key, verified)
            if packed is None:
                log.info("packed_cache_unwritable", model=model)
                return
            backend.adopt(
                packed,
                threads=self._options.intra_op_threads,
                wide_threads=self._options.wide_threads,
            )
            return_free_memory()
        except Exception:
            # The model serves as it is; only the gain is lost.
            log.exception("packing_failed", model=model)

    def _measure(self, version: ModelVersion, device: str, before: int | None) -> int:
        """What the session really takes, where that can be told.

        A load beside another one can not be told apart from it, and memory that was
        freed before may hide a part: never below the size of the files.
        """
        after = self._used_bytes(device)
        if before is None or after is None or self._loading > 1 or after <= before:
            return self.predict_bytes(version.key, device)
        return max(after - before, version.file_bytes)

    def _used_bytes(self, device: str) -> int | None:
        if device == CPU:
            return resident_set_bytes()
        memory = self._gpus.memory(int(device.removeprefix("cuda:")))
        return memory.total_bytes - memory.free_bytes if memory else None


@dataclass(frozen=True, slots=True)
class _Source:
    """What one load reads."""

    version: ModelVersion
    key: str
    """Of the graph's packed form."""
    files: Verification

    def save_packed(self, target: Path) -> None:
        """Pack the graph, unless it was written to since it was verified."""
        graph = self.version.graph
        manifest = self.version.manifest
        save_packed(
            graph,
            target,
            vocabulary_size=manifest.vocabulary_size,
            max_tokens=manifest.max_tokens,
        )
        if not self.files.still_holds():
            raise OSError(f"{graph.name} was changed while it was packed")


def _release_locals(error: BaseException | None) -> None:
    """A failure is remembered, and with its traceback whatever was opened before it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _open_tokenizer(version: ModelVersion) -> TextTokenizer:
    manifest = version.manifest
    try:
        return TextTokenizer.open(version.folder / TOKENIZER_FILE, manifest.max_tokens)
    except ValueError as error:
        raise ModelLoadFailed(str(error)) from error
