"""What is seen of each device's memory: the machine's and the cgroup's files, and NVML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shoal_server.residency.pressure import MemoryUse
from shoal_server.residency.probes import (
    CGROUP_ROOT,
    PROC,
    Gpus,
    memory_limits,
    memory_stalled,
)

_CPU = "cpu"


class MemoryProbe:
    """Looks at the memory of some devices. Blocks; holds nothing between looks."""

    def __init__(
        self, devices: Sequence[str], gpus: Gpus, cgroup: Path = CGROUP_ROOT, proc: Path = PROC
    ) -> None:
        """Look at nothing yet.

        Args:
            devices: `cpu`, `cuda:0`, …
            gpus: Tells of theirs.
            cgroup: Where cgroups are mounted.
            proc: Where /proc is.
        """
        self._devices = devices
        self._gpus = gpus
        self._cgroup = cgroup
        self._proc = proc

    def look(self) -> dict[str, MemoryUse]:
        """What is in use of each device that tells."""
        seen = {device: self._look_at(device) for device in self._devices}
        return {device: use for device, use in seen.items() if use is not None}

    def _look_at(self, device: str) -> MemoryUse | None:
        if device == _CPU:
            limits = memory_limits(self._cgroup, self._proc)
            stalled = memory_stalled(self._cgroup, self._proc)
        else:
            memory = self._gpus.memory(int(device.removeprefix("cuda:")))
            limits, stalled = [memory] if memory else [], 0.0
        return MemoryUse(tuple(limits), stalled) if limits else None
