"""Devices, what runs on each at once, and how much of its memory models may take."""

from __future__ import annotations

from dataclasses import dataclass

import onnxruntime
import structlog

from shoal_server.batching.slots import Slots
from shoal_server.composition.start_error import StartError
from shoal_server.errors import FailedPrecondition
from shoal_server.inference.cuda import cuda_problem
from shoal_server.inference.devices import CPU, AvailableDevices, find_devices
from shoal_server.residency.eviction import Budget
from shoal_server.residency.probes import Gpus, available_cpus, cpu_memory
from shoal_server.settings import Settings

log = structlog.get_logger(__name__)

# Of a device's memory, what models may take when no budget is set.
_MEMORY_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Hardware:
    """What this machine has for models."""

    devices: AvailableDevices
    gpus: Gpus
    slots: dict[str, Slots]
    """By device."""


def find_hardware(settings: Settings) -> Hardware:
    """Look at the machine.

    Raises:
        StartError: The default device can not be had.
    """
    gpus = Gpus()
    devices = find_devices(onnxruntime.get_available_providers(), gpus.count, cuda_problem)
    _check_device(settings, devices)
    return Hardware(devices, gpus, _make_slots(settings, devices))


def memory_budgets(settings: Settings, hardware: Hardware) -> dict[str, Budget]:
    """What models may take of each device."""
    budgets = {}
    for index, device in enumerate(hardware.devices.names, start=-1):
        memory = cpu_memory() if device == CPU else hardware.gpus.memory(index)
        usual = int(memory.total_bytes * _MEMORY_SHARE) if memory else None
        if device == CPU:
            budgets[device] = Budget(
                settings.max_resident_models, settings.memory_budget_bytes or usual
            )
        else:
            budgets[device] = Budget(
                settings.cuda_max_resident_models, settings.cuda_memory_budget_bytes or usual
            )
    return budgets


def _check_device(settings: Settings, devices: AvailableDevices) -> None:
    """Say at once when the default device can not be had."""
    try:
        device = devices.resolve(settings.device)
    except FailedPrecondition as error:
        raise StartError(error.message) from error
    if settings.device == "auto" and device == CPU and devices.gpu_expected:
        log.warning("device_fallback", device=CPU, reason=devices.gpu_problem)


def _make_slots(settings: Settings, devices: AvailableDevices) -> dict[str, Slots]:
    cpu_slots = settings.cpu_slots or max(1, available_cpus() // settings.intra_op_threads)
    return {
        device: Slots(cpu_slots if device == CPU else settings.cuda_slots)
        for device in devices.names
    }
