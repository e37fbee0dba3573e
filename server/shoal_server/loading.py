"""Brings a model version into memory: verify, open, warm up, measure.

Everything that blocks happens in a thread of the loader's; what is made there is
handed to the event loop whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from shoal_server.batching.batcher import Batcher, BatchObserver
from shoal_server.batching.cost import CostModel
from shoal_server.batching.policy import BatchLimits
from shoal_server.batching.slots import Slots
from shoal_server.batching.turns import Turns
from shoal_server.batching.warm_up import warm_up, warm_up_shapes
from shoal_server.core import ModelKey
from shoal_server.errors import AllocationFailed, ModelLoadFailed, ShoalError
from shoal_server.inference.backend import Backend
from shoal_server.inference.bound_model import BoundModel
from shoal_server.inference.cuda import CudaOptions
from shoal_server.inference.devices import CPU
from shoal_server.inference.graph_in_memory import GraphInMemory, hold
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.inference.packed import PackedCache, packed_key
from shoal_server.inference.tokenizer import TextTokenizer
from shoal_server.load_source import (
    Source,
    cpu_bytes,
    explained,
    graph_files,
    open_tokenizer,
    warm_bytes,
)
from shoal_server.loaded_model import Improvement, Kept, LoadedModel, WarmModel
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.verification import Verification
from shoal_server.residency.loads import release_locals
from shoal_server.residency.probes import Gpus, resident_set_bytes, return_free_memory

__all__ = ["LoadOptions", "LoadedModel", "ModelLoader"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What the loading thread hands over."""

    tokenizer: TextTokenizer
    backend: Backend
    cost: CostModel
    size_bytes: int
    improvement: Improvement | None
    warm_bytes: int
    """What its warm form would take."""


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
        self._distrusted: set[ModelKey] = set()

    def predict_bytes(self, key: ModelKey, device: str) -> int:
        """Size in memory, from the size of the files."""
        version = self._registry.version(key)
        return version.file_bytes if device != CPU else cpu_bytes(version)

    def predict_peak_bytes(self, key: ModelKey, device: str) -> int:
        """Size in memory, and on the CPU the graph's file once more: it is read whole first.

        A graph of 256 MB with its weights inside takes up to 519 MB while it is opened;
        weights beside it are mapped.
        """
        if device != CPU:
            return self.predict_bytes(key, device)
        try:
            graph_bytes = self._registry.version(key).graph.stat().st_size
        except OSError:
            graph_bytes = 0  # loading will say what is wrong with it
        return self.predict_bytes(key, device) + graph_bytes

    def distrust(self, key: ModelKey) -> None:
        """Read all files of a version at its next load, whatever is remembered of them."""
        self._distrusted.add(key)

    async def load(self, key: ModelKey, device: str) -> LoadedModel:
        """Load a version; see `SessionLoader.load`."""
        return await self.load_kept(key, device, None)

    async def load_kept(self, key: ModelKey, device: str, kept: Kept | None) -> LoadedModel:
        """Load a version; of what was kept of it, where something was."""
        version = self._registry.version(key)
        self._loading += 1
        try:
            trust = key not in self._distrusted
            opened = await asyncio.get_running_loop().run_in_executor(
                self._load_executor, self._open, version, device, trust, kept
            )
            self._distrusted.discard(key)
        except ShoalError as error:
            release_locals(error)
            raise
        finally:
            self._loading -= 1
        batcher = Batcher(
            opened.backend,
            limits=self.limits(version, device),
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
            turns=Turns(self._slots[device], self._run_executor),
            backend=opened.backend,
            executor=self._load_executor,
            background_executor=self._background_executor,
            improvement=opened.improvement,
            warm_form=self._warm_form(version, device, opened),
        )

    def _warm_form(self, version: ModelVersion, device: str, opened: _Opened) -> WarmModel | None:
        if device == CPU:
            return None
        return WarmModel(self, version, opened.tokenizer, opened.warm_bytes)

    def keep(self, version: ModelVersion, tokenizer: TextTokenizer) -> Kept:
        """Read what a version's session is opened from; blocks.

        Raises:
            ModelFileCorrupt: A file is missing, unreadable or not what was prepared.
            ModelLoadFailed: It can not be opened out of memory.
        """
        files = Verification(self._registry.repository, version, {})
        names = graph_files(version)
        contents = files.read(names, verify=self._options.verify_files)
        graph = contents.pop(version.chosen.graph)
        beside = {names[name]: data for name, data in contents.items()}
        return Kept(version, tokenizer, files, hold(graph, beside))

    def is_current(self, kept: Kept) -> bool:
        """Whether nobody wants the version's files read again, and its manifests are the same."""
        now, then = self._registry.version(kept.version.key), kept.version
        same = (now.manifest, now.chosen, now.folder) == (then.manifest, then.chosen, then.folder)
        return same and now.key not in self._distrusted

    def change(self, options: LoadOptions, loaded: Iterable[LoadedModel]) -> None:
        """Go by other options from now on.

        Args:
            options: For what is loaded from now on.
            loaded: In memory now; their batches are formed by the new options, too.
        """
        self._options = options
        for model in loaded:
            model.batcher.change(
                self.limits(model.version, model.device),
                max_queue_s=options.max_queue_s,
                priority_head_start_s=options.priority_head_start_s,
            )

    @property
    def threads(self) -> int:
        """Of one run on the CPU."""
        return self._options.intra_op_threads

    def limits(self, version: ModelVersion, device: str) -> BatchLimits:
        """What a batch of a model may be, now."""
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

    def _open(self, version: ModelVersion, device: str, trust: bool, kept: Kept | None) -> _Opened:
        """In a thread of the loader's."""
        if kept is not None:
            return self._open_kept(version, device, kept)
        cache = self._cache if device == CPU else None
        source = self._look_at(version, cache, trust)
        before = self._used_bytes(device)
        with ThreadPoolExecutor(1, thread_name_prefix="shoal-verify") as beside:
            verifying = self._verify(source, beside)
            try:
                tokenizer, backend, cost = self._open_parts(source, cache, device)
            finally:
                # A file that is not what was prepared explains whatever the runtime said.
                verifying.result()
        size_bytes = self._measure(version, device, before)
        improvement = None
        if cache:
            assert isinstance(backend, OnnxModel)  # noqa: S101  (there is a cache for the CPU only)
            improvement = Improvement(partial(self._pack, source), partial(self._adopt, backend))
        return _Opened(tokenizer, backend, cost, size_bytes, improvement, warm_bytes(version))

    def _open_kept(self, version: ModelVersion, device: str, kept: Kept) -> _Opened:
        before = self._used_bytes(device)
        with explained(version):
            backend, cost = self._open_on_gpu(version, device, kept.tokenizer, kept.graph)
        size_bytes = self._measure(version, device, before)
        return _Opened(kept.tokenizer, backend, cost, size_bytes, None, warm_bytes(version))

    def _look_at(self, version: ModelVersion, cache: PackedCache | None, trust: bool) -> Source:
        key = packed_key(version.files)
        checked = cache.verified(key) if cache and trust else {}
        files = Verification(self._registry.repository, version, checked)
        if not self._options.verify_files:
            # Nobody compares SHA-256: what was written to counts as another graph.
            key = packed_key({path: str(seen) for path, seen in files.signatures.items()})
        return Source(version, key, files, trust)

    def _verify(self, source: Source, beside: Executor) -> Future[None]:
        """Check the graph now and its weights meanwhile."""
        if not self._options.verify_files:
            return beside.submit(lambda: None)
        source.files.check_graph()
        return beside.submit(source.files.check_weights)

    def _open_parts(
        self, source: Source, cache: PackedCache | None, device: str
    ) -> tuple[TextTokenizer, OnnxModel | BoundModel, CostModel]:
        version = source.version
        manifest = version.manifest
        packed = cache.find(source.key, trust=source.trust) if cache else None
        with explained(version):
            tokenizer = open_tokenizer(version)
            if device != CPU:
                return (tokenizer, *self._open_on_gpu(version, device, tokenizer))
            backend = self._open_graph(version, packed, tokenizer.pad_id)
            backend.check(manifest)
            token_id = min(tokenizer.pad_id, manifest.vocabulary_size - 1)
            return tokenizer, backend, warm_up(backend, token_id, manifest.max_tokens)

    def _open_on_gpu(
        self,
        version: ModelVersion,
        device: str,
        tokenizer: TextTokenizer,
        in_memory: GraphInMemory | None = None,
    ) -> tuple[BoundModel, CostModel]:
        manifest, lanes = version.manifest, self._slots[device].count
        bound = BoundModel.open(
            version.graph,
            device=device,
            cuda=self._options.cuda,
            pad_id=tokenizer.pad_id,
            max_tokens=manifest.max_tokens,
            dimensions=manifest.dimensions,
            lanes=lanes,
            in_memory=in_memory,
        )
        bound.check(manifest)
        limits = self.limits(version, device)
        shapes = bound.buckets.all(limits.max_items, limits.max_tokens)
        token_id = min(tokenizer.pad_id, manifest.vocabulary_size - 1)
        return bound, warm_up_shapes(bound, token_id, shapes, runs_at_once=lanes)

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

    def _pack(self, source: Source) -> Path | None:
        """Pack the graph where that was not done before; holds nothing of its session."""
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
            return_free_memory()
        except Exception:
            # The model serves as it is; only the gain is lost.
            log.exception("packing_failed", model=model)
            return None
        return packed

    def _adopt(self, backend: OnnxModel, packed: Path) -> None:
        """Go over to the packed graph."""
        try:
            backend.adopt(
                packed,
                threads=self._options.intra_op_threads,
                wide_threads=self._options.wide_threads,
            )
            return_free_memory()
        except Exception:
            log.exception("packing_failed", graph=packed.parent.name)

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
