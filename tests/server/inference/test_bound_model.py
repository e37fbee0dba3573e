"""The backend for GPUs, on the CPU: it adds buckets and buffers, and changes no bit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from shoal_server.errors import ModelLoadFailed
from shoal_server.inference.bound_model import BoundModel
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.inference.pinned import Bytes, ordinary_memory
from shoal_server.residency.probes import resident_set_bytes
from tests.running import DEFAULT_MODEL, MODELS

from .graphs import CUDA, PAD, run, write_graph

MAX_TOKENS = 48
REAL = MODELS / DEFAULT_MODEL / "1" / "model.onnx"


class Memory:
    """Allocates, and remembers how much."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, size_bytes: int) -> Bytes:
        self.sizes.append(size_bytes)
        memory = ordinary_memory(size_bytes)
        memory[:] = 0xFF  # what is not written shows
        return memory


def open_bound(path: Path, memory: Memory | None = None, *, lanes: int = 1) -> BoundModel:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return BoundModel(
        session,
        device="cpu",
        pad_id=PAD,
        max_tokens=MAX_TOKENS,
        dimensions=session.get_outputs()[0].shape[-1],
        lanes=lanes,
        allocate=memory or ordinary_memory,
    )


def batch(draw: random.Random, most_items: int) -> list[list[int]]:
    return [
        [draw.randrange(1, 99) for _ in range(draw.randint(1, MAX_TOKENS))]
        for _ in range(draw.randint(1, most_items))
    ]


def test_real_vectors_have_the_same_bits_as_on_the_plain_path() -> None:
    """Padding to a bucket, in both directions, changes nothing; pooled vectors neither."""
    plain = OnnxModel.open(REAL, threads=1, pad_id=0)
    bound = BoundModel.open(
        REAL, device="cpu", cuda=CUDA, pad_id=0, max_tokens=256, dimensions=384, lanes=2
    )
    draw = random.Random(1)
    for _ in range(6):
        sequences = [
            [draw.randrange(1000, 20_000) for _ in range(draw.randint(1, 40))]
            for _ in range(draw.randint(1, 9))
        ]
        pooled = [draw.random() < 0.5 for _ in sequences]
        expected = [np.asarray(row).tobytes() for row in plain.run(sequences, pooled).rows]
        assert expected == [np.asarray(row).tobytes() for row in bound.run(sequences, pooled).rows]
    bound.close()


def test_batches_of_changing_shapes_do_not_mix(tmp_path: Path) -> None:
    """Bindings share their lane's memory; none sees what another left there."""
    model = open_bound(write_graph(tmp_path / "model.onnx"), Memory())
    draw = random.Random(2)
    for _ in range(60):
        sequences = batch(draw, 12)
        expected = [[sum(each), len(each)] for each in sequences]
        assert run(model, *sequences) == expected


def test_what_is_computed_is_the_bucket(tmp_path: Path) -> None:
    """The cost model and the metrics hear of the padding."""
    model = open_bound(write_graph(tmp_path / "model.onnx"))
    assert model.run([[1] * 9] * 3, [False] * 3).computed_tokens == 4 * 16
    assert model.buckets.of(3, 9) == (4, 16)


def test_nothing_is_longer_than_the_model_takes(tmp_path: Path) -> None:
    """A position table may end there."""
    model = open_bound(write_graph(tmp_path / "model.onnx", extra=("position_ids",)))
    (row,) = run(model, [1] * MAX_TOKENS)
    assert row == [MAX_TOKENS, sum(range(MAX_TOKENS)), MAX_TOKENS]
    assert model.run([[1] * (MAX_TOKENS - 1)], [False]).computed_tokens == MAX_TOKENS


def test_memory_is_made_once_for_the_shapes_that_it_holds(tmp_path: Path) -> None:
    """After the largest shape, smaller ones and repeated ones allocate nothing."""
    memory = Memory()
    model = open_bound(write_graph(tmp_path / "model.onnx"), memory)
    run(model, *[[1] * MAX_TOKENS] * 8)
    before = list(memory.sizes)
    draw = random.Random(3)
    for _ in range(20):
        run(model, *batch(draw, 8))
    assert memory.sizes == before


def test_lanes_take_turns(tmp_path: Path) -> None:
    """One run after the other warms all of them."""
    memory = Memory()
    model = open_bound(write_graph(tmp_path / "model.onnx"), memory, lanes=3)
    for _ in range(3):
        run(model, [1])
    assert len(memory.sizes) == 3
    run(model, [2])
    assert len(memory.sizes) == 3


def test_a_file_that_is_no_graph_does_not_load(tmp_path: Path) -> None:
    """A failed load, in brief."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ModelLoadFailed, match="can not open the graph"):
        BoundModel.open(path, device="cpu", cuda=CUDA, pad_id=0, max_tokens=8, dimensions=2)


def test_a_gpu_that_the_runtime_does_not_have_is_refused(tmp_path: Path) -> None:
    """The runtime would fall back to the CPU without a word."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this runtime has CUDA")
    path = write_graph(tmp_path / "model.onnx")
    with pytest.raises(ModelLoadFailed, match="CUDAExecutionProvider"):
        BoundModel.open(path, device="cuda:0", cuda=CUDA, pad_id=0, max_tokens=8, dimensions=2)


@pytest.mark.skipif(not REAL.is_file(), reason="the default model is not prepared")
def test_what_runs_leave_behind_can_be_given_back() -> None:
    """Shrinking returns the arena's memory, and changes no vector."""
    model = BoundModel.open(REAL, device="cpu", cuda=CUDA, pad_id=0, max_tokens=256, dimensions=384)
    batch = [[101, *range(2000, 2253), 102]] * 8
    before = run(model, *batch)
    grown = resident_set_bytes()
    model.shrink()
    shrunk = resident_set_bytes()
    assert grown is not None
    assert shrunk is not None
    assert grown - shrunk > 20 << 20
    np.testing.assert_array_equal(run(model, *batch), before)
