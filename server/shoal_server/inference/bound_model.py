"""A prepared graph on a GPU: fixed buffers on both sides, bound to the graph.

    sequences ──collate──> host, pinned ──one copy──> device ──run──> host, pinned ──> rows

A batch is padded to a bucket (`buckets.py`). For each bucket that a lane has met there is
a `_Binding`: the device's memory for the inputs, and ONNX Runtime's binding of it and of
the host's memory for the outputs, so that a run allocates nothing and looks nothing up.

**Lanes.** A run takes a lane and gives it back, so there are as many as there ever were
runs at once, one for each slot. ONNX Runtime keeps a CUDA stream, with the libraries'
handles, for each run of a session that goes on beside others, and uses it again: two
lanes' copies and kernels do not wait for each other, and one lane's rows are copied to
the host while the next batch of another is being computed.

Nothing here is about CUDA but the providers and the pinned memory: on the CPU the same
code gives the same bits as `OnnxModel`, which the tests make use of.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from shoal_server.errors import InferenceFailed, ModelLoadFailed
from shoal_server.inference.backend import RunResult
from shoal_server.inference.buckets import Buckets, Shape
from shoal_server.inference.collate import collate_into, longest
from shoal_server.inference.cuda import CUDA_PROVIDER, CudaOptions
from shoal_server.inference.devices import CPU
from shoal_server.inference.graph_in_memory import GraphInMemory
from shoal_server.inference.onnx_session import CPU_PROVIDER, brief, checked, open_session
from shoal_server.inference.pinned import Allocate, Bytes, ordinary_memory, pinned_memory
from shoal_server.inference.signature import check_signature
from shoal_server.registry.manifest import (
    ATTENTION_MASK,
    EMBEDDING,
    INPUT_IDS,
    POOLED,
    POSITION_IDS,
    TOKEN_TYPE_IDS,
    VersionManifest,
)

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# Copied for every run, in this order; the other inputs are the same in every run.
_COPIED = (INPUT_IDS, ATTENTION_MASK)


class BoundModel:
    """Runs batches of token ids. `run` may be called from several threads at once."""

    padding_free = False
    wide_speedup = 1.0
    """There are no wide runs: any run may use all of the GPU."""

    def __init__(
        self,
        session: ort.InferenceSession,
        *,
        device: str,
        pad_id: int,
        max_tokens: int,
        dimensions: int,
        lanes: int,
        allocate: Allocate,
    ) -> None:
        """Bind nothing yet; see `open`."""
        self.device = device
        self.buckets = Buckets(max_tokens)
        self._session = session
        self._pad_id = pad_id
        self._dimensions = dimensions
        self._allocate = allocate
        self._shrinking = ort.RunOptions()
        arenas = "cpu:0" if device == CPU else f"gpu:{_index_of(device)}"
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas)
        self._has_pooled = POOLED in {each.name for each in session.get_outputs()}
        # Taken on the left and given back on the right: all of them get warm.
        self._lanes = deque(self._make_lane() for _ in range(lanes))

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        device: str,
        cuda: CudaOptions,
        pad_id: int,
        max_tokens: int,
        dimensions: int,
        lanes: int = 1,
        in_memory: GraphInMemory | None = None,
    ) -> BoundModel:
        """Open a graph; blocks while weights are read.

        Args:
            path: The prepared `model.onnx`.
            device: `cuda:N`, or `cpu`, which `OnnxModel` is better at.
            cuda: Used when `device` is a GPU.
            pad_id: Token id for padded places.
            max_tokens: The longest sequence that the model takes.
            dimensions: Of its vectors.
            lanes: Runs that there will be at once; there may be more.
            in_memory: The same graph, in RAM: no file is read.

        Raises:
            ModelLoadFailed: The runtime refused the graph or the device.
        """
        gpu = None if device == CPU else _index_of(device)
        providers = [CPU_PROVIDER] if gpu is None else cuda.providers(gpu)
        session = open_session(path, threads=1, providers=providers, in_memory=in_memory)
        if gpu is not None and CUDA_PROVIDER not in session.get_providers():
            # ONNX Runtime falls back to the CPU without an error.
            raise ModelLoadFailed(
                f"ONNX Runtime could not use {device}: its CUDA libraries did not load"
            )
        return cls(
            session,
            device=device,
            pad_id=pad_id,
            max_tokens=max_tokens,
            dimensions=dimensions,
            lanes=lanes,
            allocate=ordinary_memory if gpu is None else pinned_memory(gpu),
        )

    def check(self, manifest: VersionManifest) -> None:
        """Refuse to be the graph of another model; see `check_signature`."""
        check_signature(self._session, manifest)

    def run(
        self, sequences: Sequence[Sequence[int]], pooled: Sequence[bool], *, wide: bool = False
    ) -> RunResult:
        """Give each token sequence its vector, float32[D]; see `Backend.run`.

        Raises:
            InferenceFailed: The run failed as a whole.
        """
        began_s = time.monotonic()
        shape = self.buckets.of(len(sequences), longest(sequences))
        want_pooled = self._has_pooled and any(pooled)
        lane = self._take_lane()
        try:
            rows, unnormalized = lane.run(sequences, shape, want_pooled=want_pooled)
        except Exception as error:  # ONNX Runtime raises many unrelated types
            raise InferenceFailed(f"the model's run failed: {brief(error)}") from error
        finally:
            self._lanes.append(lane)
        if unnormalized is not None:
            rows = np.where(np.array(pooled)[:, None], unnormalized, rows)
        # The GPU computes the whole of the bucket.
        return RunResult(checked(rows), time.monotonic() - began_s, math.prod(shape))

    def shrink(self) -> None:
        """Give back what runs have left in the arenas; blocks for a run of one token."""
        lane = self._take_lane()
        try:
            shape = self.buckets.of(1, 1)
            lane.run([[self._pad_id]], shape, want_pooled=False, options=self._shrinking)
        finally:
            self._lanes.append(lane)

    def close(self) -> None:
        """Free the memory on both sides; no run is going on."""
        self._lanes.clear()  # before the session: they hold what belongs to it
        del self._session

    def _take_lane(self) -> _Lane:
        try:
            return self._lanes.popleft()
        except IndexError:  # as many runs as never before
            return self._make_lane()

    def _make_lane(self) -> _Lane:
        graph = _Graph(self._session, self.device, self._dimensions)
        return _Lane(graph, self._pad_id, self._allocate)


@dataclass(frozen=True, slots=True)
class _Graph:
    """What is bound."""

    session: ort.InferenceSession
    device: str
    dimensions: int


class _Lane:
    """What one run at a time works with: host memory, and a binding for each bucket."""

    def __init__(self, graph: _Graph, pad_id: int, allocate: Allocate) -> None:
        self._graph = graph
        self._pad_id = pad_id
        self._allocate = allocate
        self._memory = ordinary_memory(0)
        self._bindings: dict[tuple[Shape, bool], _Binding] = {}

    def run(
        self,
        sequences: Sequence[Sequence[int]],
        shape: Shape,
        *,
        want_pooled: bool,
        options: ort.RunOptions | None = None,
    ) -> tuple[Float32, Float32 | None]:
        """The vectors, float32[B, D], and those before normalisation where wanted."""
        binding = self._binding(shape, want_pooled)
        binding.run(sequences, self._pad_id, options)
        # The memory is the next run's.
        first, *rest = (output[: len(sequences)].copy() for output in binding.outputs)
        return first, rest[0] if rest else None

    def _binding(self, shape: Shape, want_pooled: bool) -> _Binding:
        binding = self._bindings.get((shape, want_pooled))
        if binding is None:
            outputs = (EMBEDDING, POOLED) if want_pooled else (EMBEDDING,)
            binding = _Binding(self._graph, shape, outputs, self._host_memory)
            self._bindings[shape, want_pooled] = binding
        return binding

    def _host_memory(self, size_bytes: int) -> Bytes:
        """The same for all bindings that it is large enough for: one runs at a time."""
        if self._memory.size < size_bytes:
            # Twice as much: smaller shapes may well be met first.
            self._memory = self._allocate(2 * size_bytes)
        return self._memory[:size_bytes]


class _Binding:
    """The graph's inputs and outputs for batches of one shape."""

    def __init__(
        self, graph: _Graph, shape: Shape, outputs: Sequence[str], host_memory: Allocate
    ) -> None:
        session = graph.session
        self._session = session
        self._on = ("cpu", 0) if graph.device == CPU else ("cuda", _index_of(graph.device))
        self._binding = session.io_binding()
        self._constants: list[ort.OrtValue] = []
        items, tokens = shape
        copied_bytes = len(_COPIED) * items * tokens * np.dtype(np.int64).itemsize
        output_bytes = items * graph.dimensions * np.dtype(np.float32).itemsize
        memory = host_memory(copied_bytes + len(outputs) * output_bytes)
        self._host: Int64 = memory[:copied_bytes].view(np.int64).reshape(-1, items, tokens)
        self.outputs: list[Float32] = [
            part.view(np.float32).reshape(items, graph.dimensions)
            for part in np.split(memory[copied_bytes:], len(outputs))
        ]
        """float32[B, D] each; what the last run gave."""
        self._copied = self._device_memory(self._host.shape)
        self._bind_constants({each.name for each in session.get_inputs()}, shape)
        for name, rows in zip(outputs, self.outputs, strict=True):
            self._binding.bind_output(name, "cpu", 0, np.float32, rows.shape, rows.ctypes.data)

    def run(
        self, sequences: Sequence[Sequence[int]], pad_id: int, options: ort.RunOptions | None
    ) -> None:
        """Leave the vectors of a batch in `outputs`."""
        ids, mask = self._host
        collate_into(ids, mask, sequences, pad_id)
        # Rows without any token have no attention to share out: some kernels give NaN.
        mask[len(sequences) :, 0] = 1
        self._copied.update_inplace(self._host)
        # Anew for each run: where a graph reads an input on the CPU, binding copies it there.
        for place, name in enumerate(_COPIED):
            self._bind_input(name, ids.shape, self._copied.data_ptr() + place * ids.nbytes)
        self._session.run_with_iobinding(self._binding, options)

    def _bind_constants(self, names: set[str], shape: Shape) -> None:
        items, tokens = shape
        constants = {
            TOKEN_TYPE_IDS: np.zeros(shape, dtype=np.int64),
            POSITION_IDS: np.tile(np.arange(tokens, dtype=np.int64), (items, 1)),
        }
        for name in names & constants.keys():
            value = self._device_memory(shape)
            value.update_inplace(constants[name])
            self._constants.append(value)
            self._bind_input(name, shape, value.data_ptr())

    def _bind_input(self, name: str, shape: Sequence[int], address: int) -> None:
        self._binding.bind_input(name, *self._on, np.int64, shape, address)

    def _device_memory(self, shape: Sequence[int]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.int64, *self._on)


def _index_of(device: str) -> int:
    return int(device.removeprefix("cuda:"))
