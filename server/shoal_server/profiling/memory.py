"""What a run takes of memory, and whether there is room for it.

The kernel keeps the most that a process had in RAM (`VmHWM`) and lets that be reset to
what it has now (proc(5): 5 to `clear_refs`), so a run's growth can be told without
looking at it while it runs. Of a GPU only what is in use before and after can be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from shoal_server.inference.devices import CPU
from shoal_server.profiling.plan import Shape
from shoal_server.profiling.profile import Cell
from shoal_server.residency.probes import PROC, Gpus, Memory, resident_set_bytes


class GrowthProbe(Protocol):
    """Tells by how much memory in use grew; for one run at a time, in its thread."""

    def begin(self) -> None:
        """From here on."""

    def bytes(self) -> int | None:
        """Since `begin`, at most; None where that can not be told."""


class ProcessGrowth:
    """Of this process, whatever in it took the memory."""

    def __init__(self, proc: Path = PROC) -> None:
        self._process = proc / "self"
        self._proc = proc
        self._before: int | None = None

    def begin(self) -> None:
        """From here on; resets the process's `VmHWM`."""
        self._before = None
        with suppress(OSError):
            (self._process / "clear_refs").write_text("5", encoding="ascii")
            self._before = resident_set_bytes(self._proc)

    def bytes(self) -> int | None:
        """Since `begin`, at most."""
        peak = self._peak_bytes()
        if self._before is None or peak is None:
            return None
        return max(0, peak - self._before)

    def _peak_bytes(self) -> int | None:
        with suppress(OSError):
            for line in (self._process / "status").read_text(encoding="ascii").splitlines():
                match line.split():
                    case ["VmHWM:", kilobytes, "kB"] if kilobytes.isdigit():
                        return int(kilobytes) * 1024
        return None


class GpuGrowth:
    """Of one GPU, whoever took the memory: what is still in use after a run."""

    def __init__(self, gpus: Gpus, index: int) -> None:
        self._gpus = gpus
        self._index = index
        self._before: int | None = None

    def begin(self) -> None:
        """From here on."""
        self._before = self._free_bytes()

    def bytes(self) -> int | None:
        """Since `begin`."""
        after = self._free_bytes()
        if self._before is None or after is None:
            return None
        return max(0, self._before - after)

    def _free_bytes(self) -> int | None:
        memory = self._gpus.memory(self._index)
        return memory.free_bytes if memory else None


def growth_probe(device: str, gpus: Gpus) -> GrowthProbe:
    """The one for `device`."""
    if device == CPU:
        return ProcessGrowth()
    return GpuGrowth(gpus, int(device.removeprefix("cuda:")))


def room_bytes(limits: Iterable[Memory], threshold: float) -> int | None:
    """Bytes until a share of `threshold` of the first of the limits is in use; None: no limits."""
    left = [
        int(threshold * each.total_bytes) - (each.total_bytes - each.free_bytes) for each in limits
    ]
    return max(0, min(left)) if left else None


def expected_growth(cells: Sequence[Cell], shape: Shape) -> int:
    """What a batch may take at most, from the batch measured that is nearest below it.

    Memory of a run grows with its tokens, and of attention with the square of a text's
    length: no faster than that.
    """
    below = [cell for cell in cells if cell.shape.squares <= shape.squares]
    if not below:
        return 0
    nearest = max(below, key=lambda cell: (cell.shape.squares, cell.shape.tokens))
    # Of two batches of the same square the one of shorter texts has more tokens.
    ratio = max(shape.squares / nearest.shape.squares, shape.tokens / nearest.shape.tokens)
    return int((nearest.memory_bytes or 0) * ratio)
