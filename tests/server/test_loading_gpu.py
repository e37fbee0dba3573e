"""A model's way to a GPU, with the CPU in its place: all but the device is what it would be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal_server.batching.policy import BatchLimits
from shoal_server.batching.slots import Slots
from shoal_server.inference.bound_model import BoundModel
from shoal_server.inference.cuda import CudaOptions
from shoal_server.inference.packed import PackedCache
from shoal_server.loading import LoadedModel, LoadOptions, ModelLoader
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


@pytest.fixture
async def loaded(
    tiny: TinyModel, opened: list[dict[str, Any]], threads: ThreadPoolExecutor
) -> AsyncIterator[LoadedModel]:
    registry = Registry(ModelRepository(tiny.root), tiny.name)
    loader = ModelLoader(
        registry,
        options=LoadOptions(
            intra_op_threads=1,
            wide_threads=1,
            verify_files=True,
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
    model = await loader.load((await registry.resolve(tiny.name)).key, "cuda:0")
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


async def test_nothing_is_packed_for_it(loaded: LoadedModel, tiny: TinyModel) -> None:
    """That form is the CPU's."""
    assert loaded.version.graph.is_file()
    assert not (tiny.root / ".packed").exists()
