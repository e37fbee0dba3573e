"""Where a model runs: the caller's wish, its manifest, the server's default."""

from __future__ import annotations

from typing import Protocol

from shoal_server.errors import FailedPrecondition
from shoal_server.inference.devices import CPU, AvailableDevices
from shoal_server.registry.prepared import ModelVersion
from shoal_server.residency.probes import Gpus


class RunsOnGpus(Protocol):
    """A graph, as far as it needs a device."""

    @property
    def gpu_only(self) -> bool:
        """Whether it is for GPUs."""


class Placement:
    """Chooses a device for a model that is to be loaded."""

    def __init__(self, devices: AvailableDevices, gpus: Gpus, default: str) -> None:
        self._devices = devices
        self._gpus = gpus
        self._default = default

    def devices_of(self, graph: RunsOnGpus) -> tuple[str, ...]:
        """Those of this server that a graph can be run on: all, or the GPUs."""
        names = self._devices.names
        return tuple(name for name in names if name != CPU or not graph.gpu_only)

    def device_for(
        self, version: ModelVersion, wanted: str = "", current: str | None = None
    ) -> str:
        """`cpu` or `cuda:N`.

        Args:
            version: The model; its manifest may name a device.
            wanted: The caller's wish; empty: none.
            current: Where the model is now, which is kept where the wish allows it.

        Raises:
            FailedPrecondition: The device can not be had, or what is to be served is not
                for it; says why.
        """
        if current is not None and (
            wanted in ("", "auto", current) or (wanted == "cuda" and current != CPU)
        ):
            return current
        device = self._devices.resolve(
            wanted or version.serving.device or self._default, self._gpus.free_bytes()
        )
        if device == CPU and version.chosen.gpu_only:
            raise FailedPrecondition(
                f"model {version.key} is to be served in fp16 and was to run on the CPU, where "
                "that is slower than fp32: give it a GPU, or ask for fp32 or int8",
                metadata={"model": version.key.name, "version": version.key.version},
            )
        return device
