"""A prepared graph, opened with ONNX Runtime on the CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from shoal_server.errors import InferenceFailed
from shoal_server.inference.backend import RunResult
from shoal_server.inference.collate import collate
from shoal_server.inference.devices import CPU
from shoal_server.inference.onnx_session import CPU_PROVIDER, brief, checked, open_session
from shoal_server.inference.padding_free import METADATA_KEY
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

# Above so many padded tokens the CPU arena gives its memory back after a run: it
# costs 2 to 4% of a large run, and keeps one such run from holding hundreds of
# megabytes for good.
_SHRINK_ARENA_TOKENS = 2048
# How a wide session is compared with a narrow one: one text of so many tokens.
_COMPARE_TOKENS = 24
_COMPARE_TRIES = 4
# Below it a wide session is not worth its threads.
_LEAST_SPEEDUP = 1.1


class OnnxModel:
    """Runs batches of token ids. `run` may be called from several threads at once."""

    device = CPU
    wide_speedup = 1.0
    """How much faster a wide run is than a narrow one; 1 where there is none."""

    def __init__(self, session: ort.InferenceSession, pad_id: int, *, packed: bool = False) -> None:
        self._packed = packed
        self.padding_free = _is_padding_free(session)
        self._narrow = session
        self._wide: ort.InferenceSession | None = None
        self._pad_id = pad_id
        self._inputs = {each.name for each in session.get_inputs()}
        self._outputs = {each.name for each in session.get_outputs()}
        self._shrinking = ort.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    @classmethod
    def open(cls, path: Path, *, threads: int, pad_id: int, packed: bool = False) -> OnnxModel:
        """Open a graph; blocks while weights are read.

        Args:
            path: The prepared `model.onnx`, or its packed form.
            threads: Threads of one run.
            pad_id: Token id for padded places.
            packed: Whether the graph is optimised and packed already.

        Raises:
            ModelLoadFailed: The runtime refused the graph.
        """
        session = open_session(path, threads=threads, providers=[CPU_PROVIDER], packed=packed)
        return cls(session, pad_id, packed=packed)

    def check(self, manifest: VersionManifest) -> None:
        """Refuse to be the graph of another model; see `check_signature`."""
        check_signature(self._narrow, manifest)

    def adopt(self, packed: Path, *, threads: int, wide_threads: int) -> None:
        """Go over to the packed form of the same graph, if need be, and open it for wide runs too.

        Both sessions share the packed weights' pages. Runs that are going on end on
        what they began with. Called from one thread.

        Args:
            packed: From the `PackedCache`.
            threads: Threads of a narrow run.
            wide_threads: Threads of a wide one; none is opened for `threads` or fewer.

        Raises:
            ModelLoadFailed: The runtime refused the packed graph.
        """
        if not self._packed:
            self._narrow = _open_packed(packed, threads)
            self.padding_free = _is_padding_free(self._narrow)
            self._packed = True
        if wide_threads > threads:
            wide = _open_packed(packed, wide_threads, alone=True)
            # Measured beside other runs it may come out too high.
            speedup = min(self._compare(self._narrow, wide), wide_threads / threads)
            if speedup >= _LEAST_SPEEDUP:
                self._wide = wide
                self.wide_speedup = speedup

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
            raise InferenceFailed(f"the model's run failed: {brief(error)}") from error
        # Copied: what ONNX Runtime gives keeps the session's arena, a hundred megabytes, as long
        # as anybody has a row of it, also when the session is closed.
        rows = outputs[0].copy()
        if len(outputs) > 1:
            rows = np.where(np.array(pooled)[:, None], outputs[1], rows)
        # A text without tokens is computed as one place.
        computed = sum(max(1, len(each)) for each in sequences) if self.padding_free else ids.size
        return RunResult(checked(rows), time.monotonic() - began_s, computed)

    def shrink(self) -> None:
        """Give back what runs have left in the arenas; blocks for a run of one token."""
        feeds = self._feeds(*collate([[self._pad_id]], self._pad_id))
        for session in (self._narrow, self._wide):
            if session is not None:
                session.run([EMBEDDING], feeds, self._shrinking)

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


def _is_padding_free(session: ort.InferenceSession) -> bool:
    return METADATA_KEY in session.get_modelmeta().custom_metadata_map


def _open_packed(path: Path, threads: int, *, alone: bool = False) -> ort.InferenceSession:
    return open_session(path, threads=threads, providers=[CPU_PROVIDER], packed=True, alone=alone)
