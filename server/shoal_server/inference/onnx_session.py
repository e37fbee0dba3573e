"""What every use of ONNX Runtime shares: opening sessions, reading errors, checking rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from shoal_server.errors import (
    AllocationFailed,
    InferenceFailed,
    ModelLoadFailed,
    ModelUnusable,
    ShoalError,
)
from shoal_server.inference.backend import Row
from shoal_server.inference.graph_in_memory import GraphInMemory

Provider = str | tuple[str, dict[str, str]]
"""Of ONNX Runtime: its name, or its name and its options."""

CPU_PROVIDER = "CPUExecutionProvider"

_MESSAGE_MAX = 300
# What ONNX Runtime raises for what a graph is. `Fail` is also raised for the machine, such as
# when there are no file handles left ("system error number 24"), or by a driver.
_OF_GRAPHS = (
    ort_errors.InvalidProtobuf,
    ort_errors.InvalidGraph,
    ort_errors.InvalidArgument,
    ort_errors.NotImplemented,
    ort_errors.Fail,
)
_SIGNS_OF_MACHINES = ("system error", "cuda", "cudnn", "cublas", "driver", "thread")


def open_session(
    path: Path,
    *,
    threads: int,
    providers: Sequence[Provider],
    packed: bool = False,
    alone: bool = False,
    in_memory: GraphInMemory | None = None,
) -> ort.InferenceSession:
    """Open a graph; blocks while weights are read.

    Args:
        path: An ONNX file; its external weights lie beside it.
        threads: Threads of one run on the CPU.
        providers: What runs it, the preferred one first.
        packed: Whether the graph is optimised and packed already.
        alone: Whether a run has the CPU to itself; its threads then wait for each other
            without sleeping.

        in_memory: The same graph, in RAM: no file is read.

    Raises:
        AllocationFailed: There is not memory enough.
        ModelUnusable: The runtime refused the graph.
        ModelLoadFailed: It refused the device, or the system refused something else.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would compete with the event loop for the cores. A run that is alone
    # loses more by waking its threads at each of its nodes than by their spinning.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if alone else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # when the run ends
    options.log_severity_level = 3
    if threads > 1:
        # As in the threads that call it, see `denormals`.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if list(providers) == [CPU_PROVIDER]:
        # To plan which values share memory takes a third of the time to open, more with the
        # square of the nodes. Where batch and length are not known it finds next to nothing:
        # a run takes the same time, and 2% less memory at most (docs/performance.md).
        options.enable_mem_reuse = False
    if packed:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    graph: Path | bytes = path
    if in_memory is not None:
        graph = in_memory.graph
        if in_memory.weights:
            names, values = zip(*in_memory.weights.items(), strict=True)
            options.add_external_initializers(list(names), list(values))
    try:
        return ort.InferenceSession(graph, sess_options=options, providers=list(providers))
    except Exception as error:  # ONNX Runtime raises many unrelated types
        raise kind_of_failure(error)(
            f"ONNX Runtime can not open the graph: {brief(error)}"
        ) from error


def checked(rows: npt.NDArray[np.float32]) -> list[Row | ShoalError]:
    """The rows of float32[B, D], with an error in place of those that are not finite."""
    if np.isfinite(rows).all():
        return list(rows)
    return [
        row
        if np.isfinite(row).all()
        else InferenceFailed(
            "the model gave numbers that are not finite for this input", not_finite=True
        )
        for row in rows
    ]


def brief(error: Exception) -> str:
    """The runtime's message without paths of this machine."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    words = [word.rsplit("/", 1)[-1] if "/" in word else word for word in first_line.split()]
    return " ".join(words)[:_MESSAGE_MAX]


def kind_of_failure(error: BaseException | None) -> type[ModelLoadFailed]:
    """What a load fails with that the runtime refused: for the graph, or for the machine."""
    if _is_out_of_memory(error):
        return AllocationFailed
    text = str(error).lower()
    is_of_the_graph = isinstance(error, _OF_GRAPHS) and not any(
        sign in text for sign in _SIGNS_OF_MACHINES
    )
    return ModelUnusable if is_of_the_graph else ModelLoadFailed


def _is_out_of_memory(error: BaseException | None) -> bool:
    # ONNX Runtime has no type of its own for this.
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        sign in text
        for sign in ("bad_alloc", "bad allocation", "failed to allocate", "out of memory")
    )
