"""What runs take of memory, and whether there is room."""

from __future__ import annotations

import mmap
from pathlib import Path

from shoal_server.profiling.memory import GpuGrowth, ProcessGrowth, expected_growth, room_bytes
from shoal_server.profiling.plan import Shape
from shoal_server.profiling.profile import Cell, make_cell
from shoal_server.residency.probes import Gpus, Memory

MIB = 1 << 20


def cell(items: int, length: int, memory_bytes: int | None) -> Cell:
    return make_cell(Shape(items, length), [1.0], memory_bytes)


def _touch(size_bytes: int) -> None:
    """Take so much memory and give it back; an allocator might reuse what it has."""
    with mmap.mmap(-1, size_bytes) as pages:
        for at in range(0, size_bytes, mmap.PAGESIZE):
            pages[at] = 1


def test_the_growth_of_this_process_is_told() -> None:
    """Also of memory that was given back before the end, and only since the beginning."""
    probe = ProcessGrowth()
    _touch(64 * MIB)
    probe.begin()
    _touch(32 * MIB)
    grown = probe.bytes()
    assert grown is not None
    assert 28 * MIB <= grown < 60 * MIB


def test_what_the_kernel_does_not_tell_is_not_made_up(tmp_path: Path) -> None:
    """None, without /proc and without a beginning."""
    probe = ProcessGrowth(tmp_path)
    probe.begin()
    assert probe.bytes() is None
    assert ProcessGrowth().bytes() is None
    gpu = GpuGrowth(Gpus(), 99)
    gpu.begin()
    assert gpu.bytes() is None


def test_room_is_what_the_tightest_limit_leaves() -> None:
    """Up to a share of it, and never less than nothing."""
    machine, cgroup = Memory(1000, 900), Memory(200, 100)
    assert room_bytes([machine, cgroup], 0.8) == 60
    assert room_bytes([machine, Memory(200, 20)], 0.8) == 0
    assert room_bytes([], 0.8) is None


def test_growth_is_expected_from_the_nearest_batch_below() -> None:
    """With the square of the length, or with the tokens where that is more."""
    cells = [cell(1, 8, 10), cell(4, 8, 100), cell(1, 64, 999)]
    assert expected_growth(cells, Shape(8, 8)) == 200
    assert expected_growth(cells, Shape(4, 16)) == 400
    assert expected_growth([cell(1, 16, 10)], Shape(4, 8)) == 20
    assert expected_growth(cells[2:], Shape(1, 8)) == 0
    assert expected_growth([cell(1, 8, None)], Shape(2, 8)) == 0
