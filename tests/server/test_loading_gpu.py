"""A model's way to a GPU, with the CPU in its place: all but the device is what it would be."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shoal_server.batching.policy import BatchLimits
from shoal_server.batching.slots import Slots
from shoal_server.errors import ModelFileCorrupt
from shoal_server.inference.bound_model import BoundModel
from shoal_server.inference.cuda import CudaOptions
from shoal_server.inference.packed import PackedCache
from shoal_server.inference.tokenizer import TextTokenizer
from shoal_server.loaded_model import LoadedModel, WarmModel
from shoal_server.loading import LoadOptions, ModelLoader
from shoal_server.registry.manifest import (
    GRAPH_FILE,
    TOKENIZER_FILE,
    VERSION_FILE,
    VersionManifest,
)
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.residency.probes import Gpus
from tests.server.batching.fakes import RecordingObserver
from tests.tiny_model import MAX_TOKENS, TinyModel, make_tiny_model

SLOTS = 2


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """With what models were opened on a GPU; they were opened on the CPU instead."""
    calls: list[dict[str, Any]] = []
    open_bound = BoundModel.open

    def on_the_cpu(path: Path, **options: Any) -> BoundModel:
        calls.append(options)
        return open_bound(path, **(options | {"device": "cpu"}))

    monkeypatch.setattr(BoundModel, "open", on_the_cpu)
    return calls


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(SLOTS) as executor:
        yield executor


@dataclass(frozen=True, slots=True)
class Loading:
    """Loads a tiny model on what counts as a GPU."""

    registry: Registry
    loader: ModelLoader

    async def __call__(self) -> LoadedModel:
        return await self.loader.load((await self.registry.resolve("")).key, "cuda:0")

    async def warm(self) -> WarmModel:
        """What is in RAM of a model that was loaded and has left."""
        model = await self()
        form = model.warm_form()
        assert form is not None
        await model.close()
        await form.fill()
        return form


@pytest.fixture(params=[True, False], ids=["verified", "unverified"])
def load(
    tiny: TinyModel,
    opened: list[dict[str, Any]],
    threads: ThreadPoolExecutor,
    request: pytest.FixtureRequest,
) -> Loading:
    return make_loading(tiny, threads, verify_files=request.param)


def make_loading(tiny: TinyModel, threads: ThreadPoolExecutor, *, verify_files: bool) -> Loading:
    registry = Registry(ModelRepository(tiny.root), tiny.name)
    loader = ModelLoader(
        registry,
        options=LoadOptions(
            intra_op_threads=1,
            wide_threads=1,
            verify_files=verify_files,
            cuda=CudaOptions(None, "kSameAsRequested", "HEURISTIC", tf32=False),
            limits=BatchLimits(max_items=1, max_tokens=8, max_padding_waste=0.5, max_wait_s=0.0),
            cuda_limits=BatchLimits(
                max_items=4, max_tokens=64, max_padding_waste=0.5, max_wait_s=0.0
            ),
            priority_head_start_s=0.5,
            max_queue_s=30.0,
        ),
        slots={"cpu": Slots(1), "cuda:0": Slots(SLOTS)},
        run_executor=threads,
        load_executor=threads,
        background_executor=threads,
        gpus=Gpus(),
        cache=PackedCache(tiny.root / ".packed", 1 << 30),
        observer=lambda _: RecordingObserver(),
    )
    return Loading(registry, loader)


@pytest.fixture
async def loaded(
    tiny: TinyModel, opened: list[dict[str, Any]], threads: ThreadPoolExecutor
) -> AsyncIterator[LoadedModel]:
    model = await make_loading(tiny, threads, verify_files=True)()
    yield model
    await model.close()


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    return make_tiny_model(tmp_path / "models")


async def test_it_is_opened_for_the_slots_of_its_gpu(
    loaded: LoadedModel, opened: list[dict[str, Any]]
) -> None:
    """With a lane for each, and what its manifest says of its size."""
    (options,) = opened
    assert options["device"] == loaded.device == "cuda:0"
    assert (options["lanes"], options["max_tokens"], options["dimensions"]) == (SLOTS, 16, 8)


async def test_it_embeds_requests_that_run_at_once(loaded: LoadedModel, tiny: TinyModel) -> None:
    """Each text has its own vector, whatever it is batched and padded with."""
    texts = ["red", "blue green", "violet " * MAX_TOKENS, "orange yellow red", "green"] * 4

    async def embed(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        (encoding,) = loaded.tokenizer.encode([text])
        (row,) = await loaded.batcher.submit([encoding.ids]).rows()
        return row

    found = await asyncio.gather(*map(embed, texts))
    expected = [tiny.vector(text) for text in texts]
    np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=1e-6)


async def vector(model: LoadedModel, text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    (encoding,) = model.tokenizer.encode([text])
    (row,) = await model.batcher.submit([encoding.ids]).rows()
    return row


def put_weights_beside(tiny: TinyModel) -> None:
    """The same graph, its weights in a file of their own, as prepared models have it."""
    path = tiny.folder / GRAPH_FILE
    graph = onnx.load(path)
    weights = f"{GRAPH_FILE}.data"
    onnx.save(graph, path, save_as_external_data=True, location=weights, size_threshold=256)
    manifest = VersionManifest.read(tiny.folder / VERSION_FILE)
    files = {
        name: hashlib.sha256((tiny.folder / name).read_bytes()).hexdigest()
        for name in (GRAPH_FILE, weights, TOKENIZER_FILE)
    }
    fresh = manifest.model_copy(update={"files": files})
    (tiny.folder / VERSION_FILE).write_text(fresh.to_toml())


@pytest.mark.parametrize("weights_beside", [False, True])
async def test_it_comes_back_from_ram_without_reading_a_file(
    load: Loading, tiny: TinyModel, weights_beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same vectors, its weights inside the graph or beside it."""
    if weights_beside:
        put_weights_beside(tiny)
    form = await load.warm()
    assert await form.is_current()
    reads: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path))
    monkeypatch.setattr(Path, "open", lambda path, *_: reads.append(path))
    monkeypatch.setattr(TextTokenizer, "open", lambda path, *_: reads.append(path))
    model = await form.load("cuda:0")
    for text in ("red blue", "green"):
        np.testing.assert_allclose(await vector(model, text), tiny.vector(text), atol=1e-6)
    await model.close()
    assert reads == []


async def test_it_takes_what_it_says_of_ram(load: Loading, tiny: TinyModel) -> None:
    """The files that it holds, and the tokenizer."""
    put_weights_beside(tiny)
    form = await load.warm()
    assert form._kept is not None
    graph = form._kept.graph
    held = len(graph.graph) + sum(each.numpy().nbytes for each in graph.weights.values())
    assert held > (tiny.folder / f"{GRAPH_FILE}.data").stat().st_size
    assert form.size_bytes > held + (tiny.folder / TOKENIZER_FILE).stat().st_size


@pytest.mark.parametrize("file", [GRAPH_FILE, TOKENIZER_FILE])
async def test_a_written_file_is_seen(load: Loading, tiny: TinyModel, file: str) -> None:
    """Without reading it, by its signature, though its contents are the same."""
    form = await load.warm()
    path = tiny.folder / file
    path.write_bytes(path.read_bytes())
    assert not await form.is_current()


async def test_a_file_that_is_gone_is_seen(load: Loading, tiny: TinyModel) -> None:
    """Whoever removes a model does not find it served from RAM."""
    form = await load.warm()
    (tiny.folder / GRAPH_FILE).unlink()
    assert not await form.is_current()


async def test_a_reload_reads_the_files(load: Loading) -> None:
    """Who wants them read again gets that, also where nobody has written to them."""
    form = await load.warm()
    load.loader.distrust(form.key)
    assert not await form.is_current()


async def test_what_was_changed_since_the_load_does_not_stay_warm(
    tiny: TinyModel, opened: list[dict[str, Any]], threads: ThreadPoolExecutor
) -> None:
    """The bytes that stay are the ones whose SHA-256 was compared."""
    load = make_loading(tiny, threads, verify_files=True)
    model = await load()
    form = model.warm_form()
    assert form is not None
    await model.close()
    path = tiny.folder / GRAPH_FILE
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ModelFileCorrupt, match=r"model\.onnx is not the file that was prepared"):
        await form.fill()


async def test_on_the_cpu_nothing_stays_warm(load: Loading, tiny: TinyModel) -> None:
    """There a session's memory is RAM already."""
    model = await load.loader.load((await load.registry.resolve(tiny.name)).key, "cpu")
    assert model.warm_form() is None
    await model.close()


async def test_nothing_is_packed_for_it(loaded: LoadedModel, tiny: TinyModel) -> None:
    """That form is the CPU's."""
    assert loaded.version.graph.is_file()
    assert not (tiny.root / ".packed").exists()
