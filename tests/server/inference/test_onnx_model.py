"""Graphs of a few nodes, run by the real runtime on the CPU."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from shoal_server.errors import AllocationFailed, InferenceFailed, ModelLoadFailed, ShoalError
from shoal_server.inference import onnx_model
from shoal_server.inference.backend import Backend, Row
from shoal_server.inference.onnx_model import CudaOptions, OnnxModel

CUDA = CudaOptions(
    memory_limit_bytes=None,
    arena_strategy="kSameAsRequested",
    cudnn_search="HEURISTIC",
    tf32=False,
)
PAD = 7
# The row of id 0 is 0/0; ids from 100 up are in no table.
BAD, UNKNOWN = 0, 100


def write_graph(
    path: Path, *, extra: tuple[str, ...] = (), outputs: tuple[str, ...] = ("embedding", "pooled")
) -> Path:
    """A graph whose vectors say what it was fed.

    `embedding` is [Σ id, Σ of each extra input, number of tokens], over the places that
    the mask leaves; `pooled` is the same, negated. 0 / Σ id is added, which is nothing,
    or NaN where the ids sum up to 0.
    """
    inputs = ("input_ids", "attention_mask", *extra)
    node = helper.make_node
    nodes = [node("Gather", ["table", "input_ids"], ["known_ids"])]
    columns = []
    for name in inputs:
        source = "known_ids" if name == "input_ids" else name
        nodes += [
            node("Mul", [source, "attention_mask"], [f"{name}.kept"]),
            node("ReduceSum", [f"{name}.kept", "last"], [f"{name}.sum"], keepdims=1),
            node("Cast", [f"{name}.sum"], [f"{name}.column"], to=TensorProto.FLOAT),
        ]
        columns.append(f"{name}.column")
    nodes += [
        node("Concat", [columns[0], *columns[2:], columns[1]], ["row"], axis=1),
        node("Sub", [columns[0], columns[0]], ["zero"]),
        node("Div", ["zero", columns[0]], ["nothing"]),
        node("Add", ["row", "nothing"], ["embedding"]),
        node("Neg", ["embedding"], ["pooled"]),
    ]
    constants = {
        "table": np.arange(UNKNOWN, dtype=np.int64),
        "last": np.array([1], dtype=np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "says-what-it-was-fed",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "T"]) for n in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", len(inputs)]) for n in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def open_model(path: Path) -> OnnxModel:
    return OnnxModel.open(path, device="cpu", threads=1, cuda=CUDA, pad_id=PAD)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return open_model(write_graph(tmp_path_factory.mktemp("graph") / "model.onnx"))


def values(row: Row | ShoalError) -> list[float]:
    assert isinstance(row, np.ndarray), row
    assert row.dtype == np.float32
    return [float(value) for value in row]


def run(
    model: OnnxModel, *sequences: list[int], pooled: tuple[bool, ...] = ()
) -> list[list[float]]:
    result = model.run(sequences, pooled or (False,) * len(sequences))
    return [values(row) for row in result.rows]


def test_it_is_a_backend(model: OnnxModel) -> None:
    """What the batcher expects of a backend is there, checked by the type checker too."""
    backend: Backend = model
    assert backend.device == "cpu"
    assert backend.wide_speedup == 1.0


def test_each_sequence_gets_its_own_row(model: OnnxModel) -> None:
    """Whatever the lengths beside it, padding counts for nothing."""
    assert run(model, [1, 2, 3], [4], [5, 6]) == [[6, 3], [4, 1], [11, 2]]


def test_the_run_is_timed(model: OnnxModel) -> None:
    """The cost model learns from it."""
    assert 0 < model.run([[1]], [False]).seconds < 60


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ((), []),
        (("token_type_ids",), [0]),
        (("position_ids",), [0 + 1 + 2]),
        (("token_type_ids", "position_ids"), [0, 0 + 1 + 2]),
    ],
)
def test_graphs_get_the_inputs_that_they_take(
    extra: tuple[str, ...], expected: list[int], tmp_path: Path
) -> None:
    """Types of zero, positions counted from zero, and neither where the graph takes none."""
    model = open_model(write_graph(tmp_path / "model.onnx", extra=extra))
    assert run(model, [1, 2, 3], [4]) == [[6, *expected, 3], [4] + [0] * len(expected) + [1]]


def test_callers_of_one_batch_get_the_vector_that_each_wants(model: OnnxModel) -> None:
    """Before or after normalisation, by item."""
    assert run(model, [1], [2], [3], pooled=(False, True, False)) == [[1, 1], [-2, -1], [3, 1]]
    assert run(model, [1], [2], pooled=(True, True)) == [[-1, -1], [-2, -1]]


def test_a_graph_that_does_not_normalise_has_one_vector(tmp_path: Path) -> None:
    """Without `pooled`, the embedding is the vector before normalisation."""
    model = open_model(write_graph(tmp_path / "model.onnx", outputs=("embedding",)))
    assert run(model, [1], [2], pooled=(False, True)) == [[1, 1], [2, 1]]


def test_a_row_that_is_not_finite_fails_alone(model: OnnxModel) -> None:
    """Its mates get theirs; the error gives no numbers away."""
    result = model.run([[1], [BAD], [2]], [False, False, True])
    assert [values(result.rows[0]), values(result.rows[2])] == [[1, 1], [-2, -1]]
    assert isinstance(result.rows[1], InferenceFailed)
    assert "not finite" in result.rows[1].message


def test_infinite_counts_as_not_finite() -> None:
    """Not only NaN: an overflow is no vector either."""
    rows = np.array([[1, 2], [math.inf, 0], [0, -math.inf], [math.nan, 1]], dtype=np.float32)
    checked = onnx_model._checked(rows)
    assert [isinstance(row, InferenceFailed) for row in checked] == [False, True, True, True]


def test_a_failing_run_is_told_in_brief(model: OnnxModel) -> None:
    """An id outside the table fails the run as a whole, and the next run is as good as ever."""
    with pytest.raises(InferenceFailed, match="run failed") as raised:
        model.run([[1], [UNKNOWN]], [False, False])
    assert "/" not in raised.value.message
    assert "\n" not in raised.value.message
    assert run(model, [1]) == [[1, 1]]


def test_several_threads_may_run_at_once(model: OnnxModel) -> None:
    """Each gets the rows of what it gave."""
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda n: run(model, [n, n], [n]), range(1, 60)))
    assert results == [[[2 * n, 2], [n, 1]] for n in range(1, 60)]


def test_large_runs_are_like_small_ones(model: OnnxModel) -> None:
    """Above the size at which the arena gives memory back, the rows are the same."""
    sequences = [[1 + n % 99] * 128 for n in range(64)]
    assert run(model, *sequences) == [[128 * (1 + n % 99), 128] for n in range(64)]


@pytest.mark.parametrize("content", [None, b"", b"no graph at all", b"\x08\x08\x12\x04junk"])
def test_a_file_that_is_no_graph_does_not_load(content: bytes | None, tmp_path: Path) -> None:
    """Missing or corrupt: a failed load, in brief, without the path to it."""
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadFailed, match="can not open the graph") as raised:
        open_model(path)
    assert str(tmp_path) not in raised.value.message
    assert tmp_path.name not in raised.value.message


def test_a_graph_without_its_weights_does_not_load(tmp_path: Path) -> None:
    """Weights beside the graph belong to it."""
    path = write_graph(tmp_path / "model.onnx")
    graph = onnx.load(path)
    # Only large tensors are moved out.
    graph.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.arange(4096, dtype=np.int64), "table")
    )
    onnx.save(graph, path, save_as_external_data=True, location="model.onnx.data")
    open_model(path)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ModelLoadFailed) as raised:
        open_model(path)
    assert str(tmp_path) not in raised.value.message


def test_a_gpu_that_the_runtime_does_not_have_is_refused(tmp_path: Path) -> None:
    """The runtime would fall back to the CPU without a word."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this runtime has CUDA")
    path = write_graph(tmp_path / "model.onnx")
    with pytest.raises(ModelLoadFailed, match="CUDAExecutionProvider"):
        OnnxModel.open(path, device="cuda:0", threads=1, cuda=CUDA, pad_id=PAD)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc", AllocationFailed),
        ("CUDA failure 2: out of memory ; GPU=0", AllocationFailed),
        ("BFCArena: Failed to allocate memory for requested buffer", AllocationFailed),
        ("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Protobuf parsing failed.", ModelLoadFailed),
    ],
)
def test_want_of_memory_is_told_from_other_failures(
    said: str, kind: type[ModelLoadFailed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool evicts and tries again for want of memory, and for nothing else."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ModelLoadFailed) as raised:
        open_model(tmp_path / "model.onnx")
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Load model from /srv/x/model.onnx failed: no", "Load model from model.onnx failed: no"),
        ("first line\nsecond line /etc/passwd", "first line"),
        ("", "RuntimeError"),
        ("x" * 1000, "x" * 300),
        ("Non-zero status at '/encoder/layer.0/MatMul'", "Non-zero status at MatMul'"),
    ],
)
def test_messages_of_the_runtime_are_cut_down(said: str, told: str) -> None:
    """One line, no folders, not too long; the error's type when it says nothing."""
    assert onnx_model._brief(RuntimeError(said)) == told


def test_cuda_options_are_what_the_runtime_calls_them() -> None:
    """Each setting under ONNX Runtime's name for it; no limit is no option."""
    assert CUDA.for_gpu(2) == {
        "device_id": "2",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    limited = CudaOptions(1 << 30, "kNextPowerOfTwo", "DEFAULT", tf32=True).for_gpu(0)
    assert limited["gpu_mem_limit"] == str(1 << 30)
    assert limited["use_tf32"] == "1"
