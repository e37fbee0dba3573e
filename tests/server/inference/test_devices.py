"""Which devices there are, and which one a wish means."""

from __future__ import annotations

from importlib import metadata

import pytest

from shoal_server.errors import FailedPrecondition
from shoal_server.inference.devices import AvailableDevices, find_devices, runtime_conflict

CPU_BUILD = ["CPUExecutionProvider"]
GPU_BUILD = ["CUDAExecutionProvider", "CPUExecutionProvider"]

NO_GPU = AvailableDevices(gpus=0, gpu_problem="there is none", gpu_expected=False)
THREE = AvailableDevices(gpus=3, gpu_problem="", gpu_expected=True)


def works() -> str:
    return ""


def must_not_be_asked() -> str:
    pytest.fail("no CUDA session is to be tried here")


def test_the_names_of_devices() -> None:
    """The CPU is always there and comes first."""
    assert NO_GPU.names == ["cpu"]
    assert THREE.names == ["cpu", "cuda:0", "cuda:1", "cuda:2"]


@pytest.mark.parametrize("wanted", ["cpu", "auto"])
def test_without_a_gpu_the_cpu_is_meant(wanted: str) -> None:
    """`auto` falls back without an error."""
    assert NO_GPU.resolve(wanted) == "cpu"


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0"])
def test_cuda_that_can_not_be_had_is_refused_with_the_reason(wanted: str) -> None:
    """Asking for a GPU is never answered with the CPU."""
    with pytest.raises(FailedPrecondition, match=f"{wanted} can not be had: there is none"):
        NO_GPU.resolve(wanted)


def test_with_gpus_the_wish_is_followed() -> None:
    """The CPU when it is named, and each GPU by its number."""
    assert THREE.resolve("cpu") == "cpu"
    assert [THREE.resolve(f"cuda:{n}") for n in range(3)] == ["cuda:0", "cuda:1", "cuda:2"]


def test_a_number_has_one_name() -> None:
    """`cuda:01` is the same GPU as `cuda:1`; budgets and slots go by one name of it."""
    assert THREE.resolve("cuda:01") == "cuda:1"


def test_a_gpu_beyond_the_last_is_refused() -> None:
    """The message names how many there are."""
    with pytest.raises(FailedPrecondition, match="cuda:3 can not be had: there are 3 GPUs"):
        THREE.resolve("cuda:3")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ([1, 3, 2], "cuda:1"),
        ([2, 2, 2], "cuda:0"),
        ([1, 2, 2], "cuda:1"),
        ([None, None, 1], "cuda:2"),
        ([None, None, None], "cuda:0"),
        ([], "cuda:0"),
    ],
)
def test_the_gpu_with_the_most_free_memory_is_chosen(
    wanted: str, free: list[int | None], expected: str
) -> None:
    """Of equals the first; one that does not tell comes last; the first when nothing is known."""
    assert THREE.resolve(wanted, free) == expected


def test_only_gpus_that_can_be_used_are_chosen() -> None:
    """The driver may know of more GPUs than sessions can be opened on."""
    assert THREE.resolve("auto", [1, 1, 2, 9]) == "cuda:2"


def test_the_cpu_build_has_no_gpu() -> None:
    """It is told what to install; a GPU with a driver means that one was expected."""
    for gpus, expected in ((None, False), (0, False), (2, True)):
        found = find_devices(CPU_BUILD, gpus, must_not_be_asked)
        assert found.gpus == 0
        assert "shoal-server[gpu]" in found.gpu_problem
        assert found.gpu_expected is expected


@pytest.mark.parametrize(("gpus", "problem"), [(None, "no NVIDIA driver"), (0, "reports no GPU")])
def test_the_gpu_build_without_a_gpu(gpus: int | None, problem: str) -> None:
    """Whoever installed it expected a GPU; no session is tried where none can be."""
    found = find_devices(GPU_BUILD, gpus, must_not_be_asked)
    assert found.gpus == 0
    assert problem in found.gpu_problem
    assert found.gpu_expected


def test_the_gpu_build_with_gpus_that_work() -> None:
    """As many as the driver reports, once a session was opened."""
    assert find_devices(GPU_BUILD, 2, works) == AvailableDevices(2, "", True)


def test_the_gpu_build_whose_libraries_do_not_load() -> None:
    """What the trial session said is the reason given."""
    found = find_devices(GPU_BUILD, 2, lambda: "cuDNN is missing")
    assert found == AvailableDevices(0, "cuDNN is missing", True)


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"onnxruntime"}, None),
        ({"onnxruntime-gpu"}, None),
        (set(), "no ONNX Runtime is installed"),
        ({"onnxruntime", "onnxruntime-gpu"}, "both installed"),
    ],
)
def test_exactly_one_runtime_may_be_installed(
    installed: set[str], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both install the same module, and the last one would win in silence."""

    def version(distribution: str) -> str:
        if distribution not in installed:
            raise metadata.PackageNotFoundError(distribution)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    conflict = runtime_conflict()
    assert (conflict is None) if told is None else (conflict is not None and told in conflict)
