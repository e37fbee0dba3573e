"""What every backend promises, asked of each: the one for CPUs and the one for GPUs.

The latter is run on the CPU: buckets, buffers and bindings are the same there.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import pytest

from shoal_server.errors import InferenceFailed
from shoal_server.inference.backend import Backend
from shoal_server.inference.bound_model import BoundModel
from shoal_server.inference.onnx_model import OnnxModel

from .graphs import BAD, CUDA, PAD, UNKNOWN, run, values, write_graph

Open = Callable[[Path], Backend]


def open_plain(path: Path) -> Backend:
    return OnnxModel.open(path, threads=1, pad_id=PAD)


def open_bound(path: Path) -> Backend:
    (output, *_) = onnxruntime.InferenceSession(path).get_outputs()
    return BoundModel.open(
        path,
        device="cpu",
        cuda=CUDA,
        pad_id=PAD,
        max_tokens=256,
        dimensions=output.shape[-1],
        lanes=2,
    )


@pytest.fixture(scope="module", params=[open_plain, open_bound], ids=["plain", "bound"])
def open_model(request: pytest.FixtureRequest) -> Open:
    opener: Open = request.param
    return opener


@pytest.fixture(scope="module")
def model(open_model: Open, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return open_model(write_graph(tmp_path_factory.mktemp("graph") / "model.onnx"))


def test_it_is_a_backend(model: Backend) -> None:
    """What the batcher expects of a backend is there, checked by the type checker too."""
    assert model.device == "cpu"
    assert model.wide_speedup == 1.0
    assert not model.padding_free


def test_each_sequence_gets_its_own_row(model: Backend) -> None:
    """Whatever the lengths beside it, padding counts for nothing."""
    assert run(model, [1, 2, 3], [4], [5, 6]) == [[6, 3], [4, 1], [11, 2]]


def test_the_run_is_timed_and_measured(model: Backend) -> None:
    """The cost model learns from it; padding that was computed counts."""
    result = model.run([[1, 2, 3], [1]], [False, False])
    assert 0 < result.seconds < 60
    assert result.computed_tokens >= 2 * 3


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
    open_model: Open, extra: tuple[str, ...], expected: list[int], tmp_path: Path
) -> None:
    """Types of zero, positions counted from zero, and neither where the graph takes none."""
    model = open_model(write_graph(tmp_path / "model.onnx", extra=extra))
    assert run(model, [1, 2, 3], [4]) == [[6, *expected, 3], [4] + [0] * len(expected) + [1]]


def test_callers_of_one_batch_get_the_vector_that_each_wants(model: Backend) -> None:
    """Before or after normalisation, by item."""
    assert run(model, [1], [2], [3], pooled=(False, True, False)) == [[1, 1], [-2, -1], [3, 1]]
    assert run(model, [1], [2], pooled=(True, True)) == [[-1, -1], [-2, -1]]


def test_a_graph_that_does_not_normalise_has_one_vector(open_model: Open, tmp_path: Path) -> None:
    """Without `pooled`, the embedding is the vector before normalisation."""
    model = open_model(write_graph(tmp_path / "model.onnx", outputs=("embedding",)))
    assert run(model, [1], [2], pooled=(False, True)) == [[1, 1], [2, 1]]


def test_a_row_that_is_not_finite_fails_alone(model: Backend) -> None:
    """Its mates get theirs; the error gives no numbers away."""
    result = model.run([[1], [BAD], [2]], [False, False, True])
    assert [values(result.rows[0]), values(result.rows[2])] == [[1, 1], [-2, -1]]
    assert isinstance(result.rows[1], InferenceFailed)
    assert "not finite" in result.rows[1].message


def test_a_failing_run_is_told_in_brief(model: Backend) -> None:
    """An id outside the table fails the run as a whole, and the next run is as good as ever."""
    with pytest.raises(InferenceFailed, match="run failed") as raised:
        model.run([[1], [UNKNOWN]], [False, False])
    assert "/" not in raised.value.message
    assert "\n" not in raised.value.message
    assert run(model, [1]) == [[1, 1]]


def test_what_was_returned_stays(model: Backend) -> None:
    """Later runs of the same shape do not write into rows that were given away."""
    first = model.run([[1], [2]], [False, True]).rows
    before = [values(row) for row in first]
    model.run([[3], [4]], [False, True])
    assert [values(row) for row in first] == before


def test_an_empty_sequence_is_padding_alone(model: Backend) -> None:
    """It fails by itself here, where no token makes 0 / 0; its mates do not."""
    result = model.run([[], [1]], [False, False])
    assert isinstance(result.rows[0], InferenceFailed)
    assert values(result.rows[1]) == [1, 1]


def test_several_threads_may_run_at_once(model: Backend) -> None:
    """Each gets the rows of what it gave."""
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda n: run(model, [n, n], [n]), range(1, 60)))
    assert results == [[[2 * n, 2], [n, 1]] for n in range(1, 60)]


def test_large_runs_are_like_small_ones(model: Backend) -> None:
    """Above the size at which the arena gives memory back, the rows are the same."""
    sequences = [[1 + n % 99] * 128 for n in range(64)]
    assert run(model, *sequences) == [[128 * (1 + n % 99), 128] for n in range(64)]
