"""Host memory that a GPU copies to and from directly.

Out of ordinary memory CUDA copies by way of a pinned buffer of its own, and its calls
return when that is done. ONNX Runtime for Python can not allocate pinned memory (its
OrtDevice knows a device's ordinary memory only), so it is asked of the CUDA runtime that
ONNX Runtime has loaded. CUDA tells pinned memory by its address, whoever hands it over.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import cache
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import structlog

log = structlog.get_logger(__name__)

Bytes = npt.NDArray[np.uint8]
Allocate = Callable[[int], Bytes]
"""Gives uint8[N], zeros or not; the memory lives as long as the array and its views."""

_PORTABLE = 1  # cudaHostAllocPortable: pinned for every GPU
_SUCCESS = 0


class CudaRuntime(Protocol):
    """The functions of `libcudart` that are used here; each gives 0 or an error."""

    def cudaSetDevice(self, device: int, /) -> int: ...  # noqa: N802, D102
    def cudaHostAlloc(self, pointer: object, size: object, flags: object, /) -> int: ...  # noqa: N802, D102
    def cudaFreeHost(self, pointer: object, /) -> int: ...  # noqa: N802, D102


def ordinary_memory(size_bytes: int) -> Bytes:
    """Memory that is not pinned."""
    return np.empty(size_bytes, dtype=np.uint8)


def pinned_memory(gpu: int, runtime: CudaRuntime | None = None) -> Allocate:
    """Allocates for one GPU; ordinary memory where pinned memory can not be had.

    Args:
        gpu: Its index.
        runtime: Of CUDA; None: the one that is loaded.
    """

    def allocate(size_bytes: int) -> Bytes:
        found = runtime or _cuda_runtime()
        if found is not None:
            pinned = _allocate(found, gpu, size_bytes)
            if pinned is not None:
                return pinned
            log.warning("pinned_memory_refused", size_bytes=size_bytes, gpu=gpu)
        return ordinary_memory(size_bytes)

    return allocate


def _allocate(runtime: CudaRuntime, gpu: int, size_bytes: int) -> Bytes | None:
    pointer = ctypes.c_void_p()
    # A thread that has chosen no GPU yet would wake the first one.
    if runtime.cudaSetDevice(gpu) != _SUCCESS:
        return None
    flags = ctypes.c_uint(_PORTABLE)
    if runtime.cudaHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(size_bytes), flags) != _SUCCESS:
        return None
    assert pointer.value is not None  # noqa: S101
    memory = (ctypes.c_uint8 * size_bytes).from_address(pointer.value)
    # Every view holds `memory`. At exit the process gives all of it back anyway.
    weakref.finalize(memory, runtime.cudaFreeHost, pointer).atexit = False
    return np.ctypeslib.as_array(memory)


@cache
def _cuda_runtime() -> CudaRuntime | None:
    """The library that ONNX Runtime's CUDA provider is linked with, and has loaded."""
    major = str(getattr(ort, "cuda_version", "") or "").partition(".")[0]
    try:
        return cast(CudaRuntime, ctypes.CDLL(f"libcudart.so.{major}"))
    except OSError as error:
        log.warning("pinned_memory_unavailable", reason=str(error))
        return None
