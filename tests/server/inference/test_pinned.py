"""Memory of the CUDA runtime's, with the C library standing in for it."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import numpy as np
import pytest

from shoal_server.inference.pinned import ordinary_memory, pinned_memory

_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]


class MallocRuntime:
    """Allocates with `malloc`, as the CUDA runtime would pinned memory."""

    def __init__(self, *, error: int = 0, no_gpu: int = 0) -> None:
        self.gpus: list[int] = []
        self.allocated: list[int] = []
        self.freed: list[int] = []
        self._error = error
        self._no_gpu = no_gpu

    def cudaSetDevice(self, device: int) -> int:  # noqa: N802
        self.gpus.append(device)
        return self._no_gpu

    def cudaHostAlloc(self, pointer: Any, size: Any, flags: Any) -> int:  # noqa: N802
        if not self._error:
            address = _libc.malloc(size.value)
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_void_p))[0] = address
            self.allocated.append(address)
        return self._error

    def cudaFreeHost(self, pointer: Any) -> int:  # noqa: N802
        self.freed.append(pointer.value)
        _libc.free(pointer)
        return 0


def test_memory_is_asked_of_the_runtime_for_the_right_gpu() -> None:
    """It is what the runtime gave, as large as was asked for, and can be written to."""
    runtime = MallocRuntime()
    memory = pinned_memory(3, runtime)(4096)
    assert (memory.size, str(memory.dtype), runtime.gpus) == (4096, "uint8", [3])
    assert memory.ctypes.data == runtime.allocated[0]
    memory[:] = 7
    assert memory.sum() == 7 * 4096


def test_memory_lives_as_long_as_its_views() -> None:
    """It is given back once, when the last of them is gone."""
    runtime = MallocRuntime()
    memory = pinned_memory(0, runtime)(4096)
    view = memory[64:128].view(np.int64).reshape(2, 4)
    del memory
    gc.collect()
    assert runtime.freed == []
    view[:] = 1
    del view
    gc.collect()
    assert runtime.freed == runtime.allocated


@pytest.mark.parametrize("refusing", [{"error": 2}, {"no_gpu": 101}])
def test_where_it_is_refused_ordinary_memory_does(refusing: dict[str, int]) -> None:
    """Copies are slower then, and as right."""
    runtime = MallocRuntime(**refusing)
    memory = pinned_memory(0, runtime)(100)
    memory[:] = 5
    assert memory.sum() == 500
    assert runtime.allocated == []


def test_without_a_cuda_runtime_memory_is_ordinary() -> None:
    """As on a machine without CUDA."""
    assert pinned_memory(0)(100).size == 100
    assert ordinary_memory(100).size == 100
