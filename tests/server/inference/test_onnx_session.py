"""What all sessions share: errors by kind, messages without paths, rows that are finite."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from shoal_server.errors import AllocationFailed, InferenceFailed, ModelLoadFailed, ModelUnusable
from shoal_server.inference.onnx_session import (
    CPU_PROVIDER,
    brief,
    checked,
    kind_of_failure,
    open_session,
)


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
        open_session(tmp_path / "model.onnx", threads=1, providers=[CPU_PROVIDER])
    assert type(raised.value) is kind


def test_a_graph_that_is_none_is_told_from_a_machine_in_need(tmp_path: Path) -> None:
    """The same runtime refuses both; of no file handles it says so as of a graph."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    said = "[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:system error number 24"
    with pytest.raises(ModelUnusable):
        open_session(path, threads=1, providers=[CPU_PROVIDER])
    for error in (
        ort_errors.Fail(said),
        ort_errors.Fail("CUDA failure 35: CUDA driver version is insufficient"),
        ort_errors.RuntimeException("std::system_error"),
        None,
    ):
        assert kind_of_failure(error) is ModelLoadFailed


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
    assert brief(RuntimeError(said)) == told


def test_infinite_counts_as_not_finite() -> None:
    """Not only NaN: an overflow is no vector either."""
    rows = np.array([[1, 2], [math.inf, 0], [0, -math.inf], [math.nan, 1]], dtype=np.float32)
    failed = [isinstance(row, InferenceFailed) for row in checked(rows)]
    assert failed == [False, True, True, True]
