"""What devices there are and which one a model gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from shoal_server.errors import FailedPrecondition

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class AvailableDevices:
    """What this process can run on, found out once at start."""

    gpus: int
    """GPUs that CUDA sessions can be opened on."""
    gpu_problem: str
    """Why there are none; empty when there are."""
    gpu_expected: bool
    """Whether somebody meant to have one: the GPU runtime or a driver is there."""

    @property
    def names(self) -> list[str]:
        """`cpu`, then `cuda:0` and so on."""
        return [CPU, *(f"cuda:{index}" for index in range(self.gpus))]

    def resolve(self, wanted: str, gpu_free_bytes: Sequence[int | None] = ()) -> str:
        """The device that `auto`, `cpu`, `cuda` or `cuda:N` means here.

        Args:
            wanted: As in the settings, already checked for form.
            gpu_free_bytes: Free memory of each GPU, for choosing among several.

        Raises:
            FailedPrecondition: CUDA was asked for and can not be had; says why.
        """
        if wanted == CPU or (wanted == "auto" and not self.gpus):
            return CPU
        if not self.gpus:
            raise FailedPrecondition(f"device {wanted} can not be had: {self.gpu_problem}")
        if wanted in ("auto", "cuda"):
            known = [(free or 0, -index) for index, free in enumerate(gpu_free_bytes[: self.gpus])]
            return f"cuda:{-max(known)[1]}" if known else "cuda:0"
        index = int(wanted.removeprefix("cuda:"))
        if index >= self.gpus:
            raise FailedPrecondition(
                f"device {wanted} can not be had: there are {self.gpus} GPUs, "
                f"cuda:0 to cuda:{self.gpus - 1}"
            )
        return f"cuda:{index}"


def find_devices(
    runtime_providers: Sequence[str], nvml_gpus: int | None, cuda_problem: Callable[[], str]
) -> AvailableDevices:
    """Judge from the runtime's build and the driver which devices can be had.

    Args:
        runtime_providers: What `onnxruntime.get_available_providers()` says.
        nvml_gpus: GPUs that the driver reports; None when there is no driver.
        cuda_problem: Tries a CUDA session; asked only where one is likely.
    """
    gpu_runtime = "CUDAExecutionProvider" in runtime_providers
    if not gpu_runtime:
        problem = "the CPU build of ONNX Runtime is installed (install shoal-server[gpu])"
    elif nvml_gpus is None:
        problem = "no NVIDIA driver answers on this machine"
    elif nvml_gpus == 0:
        problem = "the NVIDIA driver reports no GPU"
    else:
        problem = cuda_problem()
    return AvailableDevices(
        gpus=0 if problem or nvml_gpus is None else nvml_gpus,
        gpu_problem=problem,
        gpu_expected=gpu_runtime or bool(nvml_gpus),
    )


def runtime_conflict() -> str | None:
    """Why the installed runtimes can not be used; None when exactly one is there."""
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(installed) == 1:
        return None
    if installed:
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "uninstall both, then install shoal-server[cpu] or shoal-server[gpu]"
        )
    return "no ONNX Runtime is installed: install shoal-server[cpu] or shoal-server[gpu]"


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
