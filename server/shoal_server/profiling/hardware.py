"""What a profile is made on, in words."""

from __future__ import annotations

import platform
from pathlib import Path

from shoal_server.inference.devices import CPU
from shoal_server.residency.probes import PROC, Gpus


def hardware_name(device: str, gpus: Gpus, proc: Path = PROC) -> str:
    """The CPU's name as the kernel has it, or the GPU's and its driver's version."""
    if device != CPU:
        return gpus.name(int(device.removeprefix("cuda:"))) or device
    try:
        lines = (proc / "cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() == "model name":
            return value.strip()
    return platform.machine()
