"""`shoal serve` on a machine with a GPU that is none: what it runs, the CPU runs.

    python -m tests.fake_gpu serve

Its driver tells the memory that the sessions that are open on it take, each so much as its
graph has on disk, of 8 GiB or what FAKE_GPU_BYTES says.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from shoal_server.inference import devices
from shoal_server.inference.bound_model import BoundModel
from shoal_server.residency.probes import Gpus, Memory

_TOTAL_BYTES = int(os.environ.get("FAKE_GPU_BYTES", 8 << 30))
_open_bytes: dict[int, int] = {}


def _install() -> None:
    """Before the server imports what is replaced."""
    find, open_bound, close = devices.find_devices, BoundModel.open, BoundModel.close

    def find_one(*args: Any) -> devices.AvailableDevices:
        found = find(*args)
        return dataclasses.replace(found, gpus=1, gpu_problem="", gpu_expected=True)

    def open_on_the_cpu(path: Path, **options: Any) -> BoundModel:
        bound = open_bound(path, **(options | {"device": "cpu"}))
        _open_bytes[id(bound)] = path.stat().st_size
        return bound

    def close_it(bound: BoundModel) -> None:
        close(bound)
        del _open_bytes[id(bound)]

    def memory(_: Gpus, index: int) -> Memory | None:
        used_bytes = sum(_open_bytes.values())
        return Memory(_TOTAL_BYTES, _TOTAL_BYTES - used_bytes) if index == 0 else None

    def free_bytes(_: Gpus) -> list[int | None]:
        return [_TOTAL_BYTES - sum(_open_bytes.values())]

    replaced: list[tuple[object, str, object]] = [
        (devices, "find_devices", find_one),
        (BoundModel, "open", open_on_the_cpu),
        (BoundModel, "close", close_it),
        (Gpus, "memory", memory),
        (Gpus, "free_bytes", free_bytes),
    ]
    for owner, name, instead in replaced:
        setattr(owner, name, instead)


if __name__ == "__main__":
    _install()
    from shoal_server.cli.main import main

    main()
