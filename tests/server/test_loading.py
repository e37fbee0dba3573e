"""A model's way into memory and out of it, on a model of a few kilobytes."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import re
import threading
import weakref
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shoal_server.batching.policy import BatchLimits
from shoal_server.batching.slots import Slots
from shoal_server.core import ModelKey
from shoal_server.errors import ModelFileCorrupt, ModelLoadFailed, Unavailable
from shoal_server.inference.cuda import CudaOptions
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.inference.packed import PackedCache
from shoal_server.loading import LoadedModel, LoadOptions, ModelLoader
from shoal_server.registry import verification
from shoal_server.registry.manifest import GRAPH_FILE, TOKENIZER_FILE, VERSION_FILE
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.residency.probes import Gpus
from tests.server.batching.fakes import RecordingObserver, settle
from tests.tiny_model import TinyModel, add_tiny_variant, make_tiny_model

LIMITS = BatchLimits(max_items=8, max_tokens=64, max_padding_waste=0.5, max_wait_s=0.25)
CUDA = CudaOptions(None, "kSameAsRequested", "HEURISTIC", tf32=False)


class Loading:
    """Loads tiny models, and closes them once."""

    def __init__(self, cache_root: Path) -> None:
        self._cache = PackedCache(cache_root, 1 << 30)
        self._loaded: list[LoadedModel] = []
        self._executor = ThreadPoolExecutor(2)
        self._background_executor = ThreadPoolExecutor(1)

    async def __call__(
        self,
        model: TinyModel,
        *,
        cache: bool = False,
        verify_files: bool = True,
        lent: bool = True,
    ) -> LoadedModel:
        """Load, and lend it once unless `lent` is off: then it is improved, too."""
        registry = Registry(ModelRepository(model.root), model.name)
        loader = ModelLoader(
            registry,
            options=LoadOptions(
                intra_op_threads=1,
                wide_threads=1,
                verify_files=verify_files,
                cuda=CUDA,
                limits=LIMITS,
                cuda_limits=LIMITS,
                priority_head_start_s=0.5,
                max_queue_s=30.0,
            ),
            slots={"cpu": Slots(1)},
            run_executor=self._executor,
            load_executor=self._executor,
            background_executor=self._background_executor,
            gpus=Gpus(),
            cache=self._cache if cache else None,
            observer=lambda _: RecordingObserver(),
        )
        key = (await registry.resolve(model.name)).key
        assert loader.predict_bytes(key, "cpu") > loader.predict_bytes(key, "cuda:0") > 0
        loaded = await loader.load(key, "cpu")
        self._loaded.append(loaded)
        if lent:
            loaded.lease_ended()
        return loaded

    def forget(self) -> None:
        """What was loaded is closed by the test."""
        self._loaded.clear()

    async def close(self) -> None:
        """Close all, once they are packed."""
        while self._loaded:
            model = self._loaded.pop()
            await model.improved()
            await model.close()


@pytest.fixture
async def load(tmp_path: Path) -> AsyncIterator[Loading]:
    """Loads tiny models; what is still in memory is closed afterwards."""
    loading = Loading(tmp_path / "packed")
    yield loading
    await loading.close()
    loading._executor.shutdown()
    loading._background_executor.shutdown()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


async def vector(model: LoadedModel, text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    (encoding,) = model.tokenizer.encode([text])
    (row,) = await model.batcher.submit([encoding.ids]).rows()
    return row


@pytest.mark.parametrize("cache", [False, True])
async def test_a_loaded_model_embeds(load: Loading, root: Path, cache: bool) -> None:
    """Tokenizer, graph and batcher belong together, with the cache of packed graphs or without."""
    tiny = make_tiny_model(root)
    for _ in range(2):  # the second time from the cache
        model = await load(tiny, cache=cache)
        assert model.device == "cpu"
        assert model.version.key == ModelKey("tiny", "1")
        assert model.size_bytes > 0
        found = await vector(model, "red blue")
        np.testing.assert_allclose(found, tiny.vector("red blue"), atol=1e-6)


@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        ({}, LIMITS),
        (
            {"max_batch_items": 3, "max_batch_tokens": 30, "max_wait_ms": 2.0},
            BatchLimits(3, 30, LIMITS.max_padding_waste, 0.002),
        ),
        (
            {"max_wait_ms": 0.0},
            BatchLimits(LIMITS.max_items, LIMITS.max_tokens, LIMITS.max_padding_waste, 0.0),
        ),
    ],
)
async def test_the_manifest_overrides_the_servers_limits(
    load: Loading, root: Path, serving: Mapping[str, object], expected: BatchLimits
) -> None:
    """Each by itself; a window of 0 is a value, not an absence."""
    model = await load(make_tiny_model(root, serving=serving))
    assert model.batcher._limits == expected


@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        ({}, 1),
        ({"max_batch_items": 3}, 1),
        ({"allow_mixing": True}, LIMITS.max_items),
        ({"allow_mixing": True, "max_batch_items": 3}, 3),
    ],
)
async def test_a_graph_that_sees_its_batch_runs_one_text_at_a_time(
    load: Loading, root: Path, serving: Mapping[str, object], expected: int
) -> None:
    """Unless the operator allows mixing."""
    model = await load(make_tiny_model(root, serving=serving, batch_invariant=False))
    assert model.batcher._limits.max_items == expected


@pytest.mark.parametrize("batch_invariant", [True, False])
async def test_a_variant_is_batched_by_what_is_said_of_it(
    load: Loading, root: Path, batch_invariant: bool
) -> None:
    """Not by what is said of the version's own graph."""
    tiny = make_tiny_model(root, serving={"precision": "int8"}, batch_invariant=not batch_invariant)
    add_tiny_variant(tiny, batch_invariant=batch_invariant)
    model = await load(tiny)
    assert model.batcher._limits.max_items == (LIMITS.max_items if batch_invariant else 1)


@pytest.mark.parametrize("cache", [False, True])
async def test_a_variant_is_loaded_in_place_of_the_graph(
    load: Loading, root: Path, cache: bool
) -> None:
    """With its own packed form: neither is taken for the other."""
    tiny = make_tiny_model(root)
    await load(tiny, cache=cache)
    await load.close()
    variant = add_tiny_variant(tiny)
    (root / "tiny" / "model.toml").write_text('[serving]\nprecision = "int8"\n')
    for _ in range(2):  # the second time from the cache
        found = await vector(await load(tiny, cache=cache), "red blue")
        np.testing.assert_allclose(found, variant.vector("red blue"), atol=1e-6)
        await load.close()


async def test_a_damaged_variant_fails_its_own_load_only(load: Loading, root: Path) -> None:
    """The version's graph does not need it."""
    tiny = make_tiny_model(root)
    add_tiny_variant(tiny)
    path = tiny.folder / "variants" / "int8" / GRAPH_FILE
    path.write_bytes(path.read_bytes() + b"more")
    await load(tiny)
    (root / "tiny" / "model.toml").write_text('[serving]\nprecision = "int8"\n')
    with pytest.raises(ModelFileCorrupt, match=r"variants/int8/model\.onnx"):
        await load(tiny)


async def test_a_graph_that_can_not_run_does_not_load(load: Loading, root: Path) -> None:
    """What fails its first run fails the load, which the pool remembers; the model is named."""
    tiny = make_tiny_model(root, "sound")
    graph = onnx.load(tiny.folder / GRAPH_FILE)
    for output in graph.graph.output:
        output.name = output.name.replace("embedding", "something-else")
    for node in graph.graph.node:
        node.output[:] = [name.replace("embedding", "something-else") for name in node.output]
    broken = make_tiny_model(root, "broken", replaced={GRAPH_FILE: graph.SerializeToString()})
    with pytest.raises(ModelLoadFailed, match="model broken@1: ") as raised:
        await load(broken)
    assert str(root) not in raised.value.message


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add_weights(tiny: TinyModel) -> Path:
    """A file that the manifest vouches for and the runtime does not look at."""
    weights = tiny.folder / f"{GRAPH_FILE}.data"
    weights.write_bytes(b"weights" * 1000)
    with (tiny.folder / VERSION_FILE).open("a") as manifest:  # ends with the table of files
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        manifest.write(f'"{weights.name}" = "{digest}"\n')
    return weights


@pytest.mark.parametrize("file", [GRAPH_FILE, f"{GRAPH_FILE}.data", TOKENIZER_FILE])
@pytest.mark.parametrize("settled", [False, True])
async def test_a_changed_byte_is_noticed_though_a_packed_form_is_there(
    load: Loading, root: Path, file: str, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache saves the check only while no file was touched, at this load and at later ones."""
    if settled:  # as if the files had been written a while ago
        monkeypatch.setattr(verification, "_TICK_NS", 0)
    tiny = make_tiny_model(root)
    add_weights(tiny)
    for _ in range(2):
        await load(tiny, cache=True)
        await load.close()  # by now it is packed
    flip_a_byte(tiny.folder / file)
    for _ in range(2):
        with pytest.raises(ModelFileCorrupt, match=re.escape(file)):
            await load(tiny, cache=True)
    flip_a_byte(tiny.folder / file)
    await load(tiny, cache=True)


async def test_damaged_weights_explain_what_the_runtime_says_of_them(
    load: Loading, root: Path
) -> None:
    """They are checked while they are opened: whichever fails first, the file is named."""
    tiny = make_tiny_model(root, replaced={GRAPH_FILE: b"no graph"})
    flip_a_byte(add_weights(tiny))
    with pytest.raises(ModelFileCorrupt, match=rf"{GRAPH_FILE}\.data is not the file"):
        await load(tiny)


async def test_a_failed_load_leaves_nothing_in_memory(load: Loading, root: Path) -> None:
    """Though its error is remembered: what was opened before it is not."""
    tiny = make_tiny_model(root)
    flip_a_byte(add_weights(tiny))
    before = len(open_models())
    with pytest.raises(ModelFileCorrupt) as raised:
        await load(tiny)
    assert (len(open_models()), raised.value.reason) == (before, "MODEL_FILE_CORRUPT")


def open_models() -> list[OnnxModel]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, OnnxModel)]


async def test_without_verification_a_changed_graph_is_another_one(
    load: Loading, root: Path
) -> None:
    """Its manifest still has the old SHA-256, which must not find the old packed form."""
    tiny = make_tiny_model(root)
    other = make_tiny_model(root, "other", seed=1)
    await load(tiny, cache=True, verify_files=False)
    await load.close()  # by now it is packed
    (tiny.folder / GRAPH_FILE).write_bytes((other.folder / GRAPH_FILE).read_bytes())
    for _ in range(2):  # the second time from the cache
        model = await load(tiny, cache=True, verify_files=False)
        np.testing.assert_allclose(await vector(model, "red"), other.vector("red"), atol=1e-6)
        await load.close()


async def test_what_was_packed_unverified_is_not_used_verified(load: Loading, root: Path) -> None:
    """A graph may have been changed, packed, and put right again."""
    tiny = make_tiny_model(root)
    graph = tiny.folder / GRAPH_FILE
    right = graph.read_bytes()
    graph.write_bytes((make_tiny_model(root, "other", seed=1).folder / GRAPH_FILE).read_bytes())
    await load(tiny, cache=True, verify_files=False)
    await load.close()  # by now it is packed
    graph.write_bytes(right)
    model = await load(tiny, cache=True)
    np.testing.assert_allclose(await vector(model, "red"), tiny.vector("red"), atol=1e-6)


async def test_nothing_is_packed_before_somebody_has_had_an_answer(
    load: Loading, root: Path, tmp_path: Path
) -> None:
    """It would take the CPU from the request that the model was loaded for."""
    model = await load(make_tiny_model(root), cache=True, lent=False)
    await vector(model, "red")
    await load.close()
    assert not (tmp_path / "packed").exists()


async def test_a_model_is_packed_once_however_often_it_is_lent(
    load: Loading, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first lease."""
    made = []
    monkeypatch.setattr(PackedCache, "make", lambda self, key, *_: made.append(key))
    model = await load(make_tiny_model(root), cache=True)
    model.lease_ended()
    await load.close()
    assert len(made) == 1


class HeldCache:
    """Packs when a test lets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.made: list[Path | None] = []
        make = PackedCache.make

        def held_make(cache: PackedCache, *args: Any) -> Path | None:
            self.began.set()
            self.go_on.wait(30)
            self.made.append(make(cache, *args))
            return self.made[-1]

        monkeypatch.setattr(PackedCache, "make", held_make)

    async def wait_begun(self) -> None:
        await asyncio.to_thread(self.began.wait, 30)


async def test_closing_a_model_does_not_wait_for_its_packing(
    load: Loading, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is free at once; what is packed meanwhile is there for the next load."""
    held = HeldCache(monkeypatch)
    tiny = make_tiny_model(root)
    model = await load(tiny, cache=True)
    await held.wait_begun()
    assert isinstance(model._backend, OnnxModel)
    session = weakref.ref(model._backend._narrow)
    await model.close()
    load.forget()
    assert session() is None
    held.go_on.set()
    model = await load(tiny, cache=True)
    await model.improved()
    (packed,) = held.made
    assert packed is not None
    np.testing.assert_allclose(await vector(model, "red"), tiny.vector("red"), atol=1e-6)


async def test_packing_that_waits_for_its_turn_never_begins_for_a_closed_model(
    load: Loading, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take memory for a model that had to leave it."""
    held = HeldCache(monkeypatch)
    first = await load(make_tiny_model(root, "first"), cache=True)
    await held.wait_begun()
    second = await load(make_tiny_model(root, "second", seed=1), cache=True)
    await asyncio.sleep(0)  # it asks for its turn
    await second.close()
    load.forget()
    held.go_on.set()
    await first.improved()
    await first.close()
    assert len(held.made) == 1


async def test_an_aborted_model_takes_nothing_new(load: Loading, root: Path) -> None:
    """After `abort` its callers are told why."""
    model = await load(make_tiny_model(root))
    model.abort(Unavailable("by force"))
    with pytest.raises(Unavailable, match="by force"):
        model.batcher.submit([[1]])


async def test_closing_a_model_does_not_wait_for_the_packing_of_another(
    load: Loading, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packed form is there, and going over to it waits behind that packing."""
    packed = make_tiny_model(root, "packed")
    model = await load(packed, cache=True)
    await model.improved()
    await model.close()
    held, gate = HeldCache(monkeypatch), threading.Event()
    load._background_executor.submit(gate.wait, 30)
    model = await load(packed, cache=True)
    other = await load(make_tiny_model(root, "other", seed=1), cache=True)
    await asyncio.sleep(0)  # both have asked for their turn
    gate.set()
    await held.wait_begun()
    assert model._adopting is not None
    await model.close()
    load.forget()
    assert held.made == []
    held.go_on.set()
    await other.improved()
    await other.close()


async def test_copies_of_a_model_share_one_packed_form(
    load: Loading, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made once, and neither copy makes the other's files look unchecked."""
    monkeypatch.setattr(verification, "_TICK_NS", 0)  # as if written a while ago
    made: list[str] = []
    verified: list[str] = []
    make, verify = PackedCache.make, ModelRepository.verify_files

    def watched_make(self: PackedCache, key: str, *args: Any) -> Path | None:
        made.append(key)
        return make(self, key, *args)

    def watched_verify(
        self: ModelRepository, name: str, version: str, files: Mapping[str, str]
    ) -> None:
        verified.extend(name for _ in files)
        verify(self, name, version, files)

    monkeypatch.setattr(PackedCache, "make", watched_make)
    monkeypatch.setattr(ModelRepository, "verify_files", watched_verify)
    copies = [make_tiny_model(root, name) for name in ("one", "two")]
    for tiny in copies * 2:
        await load(tiny, cache=True)
        await load.close()
    assert len(made) == 1
    assert verified == ["one", "one", "two", "two"]  # each has two files


async def test_a_packed_form_that_is_gone_when_it_is_opened_fails_no_load(
    load: Loading, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may trim the cache at any moment; the graph itself is still there."""
    tiny = make_tiny_model(root)
    monkeypatch.setattr(PackedCache, "find", lambda self, key, **_: self._root / key / "graph.onnx")
    model = await load(tiny, cache=True)
    np.testing.assert_allclose(await vector(model, "red"), tiny.vector("red"), atol=1e-6)


async def test_closing_a_model_waits_for_memory_that_is_being_given_back(
    load: Loading, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where who asked for that has left, and its lease with it."""
    began, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def shrink(_: OnnxModel) -> None:
        began.set()
        go_on.wait(30)
        done.append("shrunk")

    monkeypatch.setattr(OnnxModel, "shrink", shrink)
    monkeypatch.setattr(OnnxModel, "close", lambda _: done.append("closed"))
    model = await load(make_tiny_model(root))
    load.forget()
    shrinking = asyncio.create_task(model.shrink())
    await asyncio.to_thread(began.wait, 30)
    shrinking.cancel()
    closing = asyncio.create_task(model.close())
    await asyncio.wait({shrinking})
    await settle()
    # Behind what the loop has asked the other thread for.
    await asyncio.get_running_loop().run_in_executor(load._executor, lambda: None)
    assert done == []
    go_on.set()
    await closing
    assert done == ["shrunk", "closed"]
