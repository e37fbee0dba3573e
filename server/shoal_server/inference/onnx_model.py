"""A prepared graph, opened with ONNX Runtime on one device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper

from shoal_server.errors import AllocationFailed, InferenceFailed, ModelLoadFailed, ShoalError
from shoal_server.inference.backend import Row, RunResult
from shoal_server.inference.collate import collate
from shoal_server.inference.devices import CPU
from shoal_server.registry.manifest import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    POOLED,
    POSITION_IDS,
    TOKEN_TYPE_IDS,
)

# Above so many padded tokens the CPU arena gives its memory back after a run: it
# costs 2 to 4% of a large run, and keeps one such run from holding hundreds of
# megabytes for good.
_SHRINK_ARENA_TOKENS = 2048
# How a wide session is compared with a narrow one: one text of so many tokens.
_COMPARE_TOKENS = 24
_COMPARE_TRIES = 4


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """What ONNX Runtime's CUDA provider is told; see the settings of these names."""

    memory_limit_bytes: int | None
    arena_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"]
    cudnn_search: Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]
    tf32: bool

    def for_gpu(self, index: int) -> dict[str, str]:
        """Options of the provider for one GPU."""
        options = {
            "device_id": str(index),
            "arena_extend_strategy": self.arena_strategy,
            "cudnn_conv_algo_search": self.cudnn_search,
            "use_tf32": "1" if self.tf32 else "0",
        }
        if self.memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        return options


class OnnxModel:
    """Runs batches of token ids. `run` may be called from several threads at once."""

    wide_speedup = 1.0
    """How much faster a wide run is than a narrow one; 1 where there is none."""

    def __init__(self, session: ort.InferenceSession, device: str, pad_id: int) -> None:
        self.device = device
        self._narrow = session
        self._wide: ort.InferenceSession | None = None
        self._pad_id = pad_id
        self._inputs = {each.name for each in session.get_inputs()}
        self._outputs = {each.name for each in session.get_outputs()}
        self._shrinking = ort.RunOptions()
        if device == CPU:
            self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: str,
        threads: int,
        cuda: CudaOptions,
        pad_id: int,
        packed: bool = False,
    ) -> OnnxModel:
        """Open a graph; blocks while weights are read.

        Args:
            path: The prepared `model.onnx`, or its packed form.
            device: `cpu` or `cuda:N`.
            threads: Threads of one run on the CPU.
            cuda: Used when `device` is a GPU.
            pad_id: Token id for padded places.
            packed: Whether the graph is optimised and packed already.

        Raises:
            ModelLoadFailed: The runtime refused the graph or the device.
        """
        providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
        if device != CPU:
            gpu = int(device.removeprefix("cuda:"))
            providers.insert(0, ("CUDAExecutionProvider", cuda.for_gpu(gpu)))
        session = _open_session(path, threads, providers, packed=packed)
        if device != CPU and "CUDAExecutionProvider" not in session.get_providers():
            # ONNX Runtime falls back to the CPU without an error.
            raise ModelLoadFailed(
                f"ONNX Runtime could not use {device}: its CUDA libraries did not load"
            )
        return cls(session, device, pad_id)

    def adopt(self, packed: Path, *, threads: int, wide_threads: int) -> None:
        """Go over to the packed form of the same graph, and open it for wide runs too.

        Both sessions share the packed weights' pages. Runs that are going on end on
        what they began with. Called from one thread.

        Args:
            packed: From the `PackedCache`.
            threads: Threads of a narrow run.
            wide_threads: Threads of a wide one; none is opened for `threads` or fewer.

        Raises:
            ModelLoadFailed: The runtime refused the packed graph.
        """
        providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
        self._narrow = _open_session(packed, threads, providers, packed=True)
        if wide_threads > threads:
            wide = _open_session(packed, wide_threads, providers, packed=True)
            self.wide_speedup = self._compare(self._narrow, wide)
            self._wide = wide

    def _compare(self, narrow: ort.InferenceSession, wide: ort.InferenceSession) -> float:
        """How much faster `wide` runs one text; the best of several tries of each."""
        feeds = self._feeds(*collate([[self._pad_id] * _COMPARE_TOKENS], self._pad_id))
        best: dict[int, float] = {}
        for session in (narrow, wide) * _COMPARE_TRIES:
            began_s = time.monotonic()
            session.run([EMBEDDING], feeds)
            seconds = time.monotonic() - began_s
            best[id(session)] = min(seconds, best.get(id(session), seconds))
        return max(1.0, best[id(narrow)] / best[id(wide)])

    def run(
        self, sequences: Sequence[Sequence[int]], pooled: Sequence[bool], *, wide: bool = False
    ) -> RunResult:
        """Give each token sequence its vector, float32[D].

        Args:
            sequences: B sequences of token ids.
            pooled: For each, whether the vector before normalisation is wanted.
            wide: Use all threads; ignored where no wide session is open.

        Raises:
            InferenceFailed: The run failed as a whole.
        """
        began_s = time.monotonic()
        ids, mask = collate(sequences, self._pad_id)
        names = [EMBEDDING]
        if any(pooled) and POOLED in self._outputs:
            names.append(POOLED)
        options = self._shrinking if ids.size > _SHRINK_ARENA_TOKENS else None
        session = self._wide if wide and self._wide is not None else self._narrow
        try:
            outputs = session.run(names, self._feeds(ids, mask), options)
        except Exception as error:  # ONNX Runtime raises many unrelated types
            raise InferenceFailed(f"the model's run failed: {_brief(error)}") from error
        rows = outputs[0]
        if len(outputs) > 1:
            rows = np.where(np.array(pooled)[:, None], outputs[1], rows)
        return RunResult(_checked(rows), time.monotonic() - began_s)

    def close(self) -> None:
        """Free the weights; no run is going on."""
        del self._narrow, self._wide

    def _feeds(
        self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[np.int64]]:
        feeds = {INPUT_IDS: ids, ATTENTION_MASK: mask}
        if TOKEN_TYPE_IDS in self._inputs:
            feeds[TOKEN_TYPE_IDS] = np.zeros_like(ids)
        if POSITION_IDS in self._inputs:
            feeds[POSITION_IDS] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
        return feeds


def _open_session(
    path: Path,
    threads: int,
    providers: list[str | tuple[str, dict[str, str]]],
    *,
    packed: bool,
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would compete with the event loop for the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if packed:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(path, sess_options=options, providers=providers)
    except Exception as error:  # ONNX Runtime raises many unrelated types
        kind = AllocationFailed if _is_out_of_memory(error) else ModelLoadFailed
        raise kind(f"ONNX Runtime can not open the graph: {_brief(error)}") from error


def cuda_problem() -> str:
    """Why CUDA sessions can not be opened; empty when they can.

    The provider being compiled in says nothing of its libraries: only a session
    tells, so a graph of one node is opened.
    """
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_model(
        helper.make_graph([node], "probe", [value], [output]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        preload()  # finds CUDA and cuDNN where pip put them
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            graph.SerializeToString(), sess_options=options, providers=["CUDAExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime raises many unrelated types
        return f"ONNX Runtime can not use CUDA: {_brief(error)}"
    if "CUDAExecutionProvider" not in session.get_providers():
        return "ONNX Runtime's CUDA libraries did not load (CUDA or cuDNN of another version?)"
    return ""


def _checked(rows: npt.NDArray[np.float32]) -> list[Row | ShoalError]:
    """The rows of float32[B, D], with an error in place of those that are not finite."""
    if np.isfinite(rows).all():
        return list(rows)
    return [
        row
        if np.isfinite(row).all()
        else InferenceFailed("the model gave numbers that are not finite for this input")
        for row in rows
    ]


def _is_out_of_memory(error: Exception) -> bool:
    # ONNX Runtime has no type of its own for this.
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        sign in text
        for sign in ("bad_alloc", "bad allocation", "failed to allocate", "out of memory")
    )


def _brief(error: Exception) -> str:
    """The runtime's message without paths of this machine."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    words = [word.rsplit("/", 1)[-1] if "/" in word else word for word in first_line.split()]
    return " ".join(words)[:300]
