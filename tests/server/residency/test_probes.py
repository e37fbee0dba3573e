"""What the machine gives us, read from files and a driver that the tests make up."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from shoal_server.residency.memory_probe import MemoryProbe
from shoal_server.residency.pressure import MemoryUse
from shoal_server.residency.probes import (
    Gpus,
    Memory,
    Utilization,
    available_cpus,
    cpu_memory,
    memory_limits,
    memory_stalled,
    resident_set_bytes,
    return_free_memory,
)

MIB = 1 << 20
MACHINE = "MemTotal:  16384 kB\nMemFree:  1024 kB\nMemAvailable:  8192 kB\nHugePages_Total: 0\n"


class Machine:
    """A `/sys/fs/cgroup` and a `/proc` below a folder."""

    def __init__(self, folder: Path) -> None:
        self.cgroup = folder / "cgroup"
        self.proc = folder / "proc"
        self.write("proc/meminfo", MACHINE)
        self._folder = folder

    def write(self, path: str, text: str) -> None:
        file = self.cgroup.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="latin-1")

    def cpus(self) -> int:
        return available_cpus(self.cgroup, self.proc)

    def memory(self) -> Memory | None:
        return cpu_memory(self.cgroup, self.proc)

    def limits(self) -> list[Memory]:
        return memory_limits(self.cgroup, self.proc)

    def stalled(self) -> float:
        return memory_stalled(self.cgroup, self.proc)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One of 8 CPUs in the affinity mask, and 16 MiB of memory, half of it free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return Machine(tmp_path)


def test_without_a_quota_the_affinity_mask_counts(machine: Machine) -> None:
    """No cgroup file at all: as many CPUs as the mask allows."""
    assert machine.cpus() == 8


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("3200000 100000", 8),
    ],
)
def test_the_quota_of_cgroup_v2(machine: Machine, quota: str, expected: int) -> None:
    """Rounded up, at least one, and never more than the mask."""
    machine.write("cgroup/cpu.max", quota + "\n")
    assert machine.cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("250000", 3), ("10000", 1)])
def test_the_quota_of_cgroup_v1(machine: Machine, quota: str, expected: int) -> None:
    """The same for v1, where -1 means none."""
    machine.write("cgroup/cpu/cpu.cfs_quota_us", quota + "\n")
    machine.write("cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert machine.cpus() == expected


def test_the_tightest_quota_on_the_way_to_the_root_holds(machine: Machine) -> None:
    """A service in a slice: the limits of its own cgroup and of those above it all count."""
    machine.write("proc/self/cgroup", "0::/shoal.slice/shoal.service\n")
    machine.write("cgroup/shoal.slice/cpu.max", "300000 100000\n")
    machine.write("cgroup/shoal.slice/shoal.service/cpu.max", "max 100000\n")
    assert machine.cpus() == 3
    machine.write("cgroup/shoal.slice/shoal.service/cpu.max", "200000 100000\n")
    assert machine.cpus() == 2


def test_a_nested_cgroup_of_v1_is_found_by_its_controller(machine: Machine) -> None:
    """Each controller has a tree of its own."""
    machine.write("proc/self/cgroup", "4:memory:/other\n2:cpu,cpuacct:/job\n")
    machine.write("cgroup/cpu/job/cpu.cfs_quota_us", "200000")
    machine.write("cgroup/cpu/job/cpu.cfs_period_us", "100000")
    machine.write("cgroup/cpu/other/cpu.cfs_quota_us", "100000")
    machine.write("cgroup/cpu/other/cpu.cfs_period_us", "100000")
    assert machine.cpus() == 2


def test_without_a_limit_the_machines_memory_counts(machine: Machine) -> None:
    """Total and what is available (not what is free: cache can be dropped)."""
    assert machine.memory() == Memory(16 * MIB, 8 * MIB)


def test_an_old_kernel_tells_only_free_memory(machine: Machine) -> None:
    """Without MemAvailable, MemFree is what there is."""
    machine.write("proc/meminfo", "MemTotal: 16384 kB\nMemFree: 1024 kB\n")
    assert machine.memory() == Memory(16 * MIB, 1 * MIB)


def test_the_limit_of_cgroup_v2(machine: Machine) -> None:
    """Limit, less what is used, cache that can be dropped not counted as used."""
    machine.write("cgroup/memory.max", f"{4 * MIB}\n")
    machine.write("cgroup/memory.current", f"{3 * MIB}\n")
    machine.write("cgroup/memory.stat", f"anon {MIB}\ninactive_file {2 * MIB}\nactive_file 7\n")
    assert machine.memory() == Memory(4 * MIB, 3 * MIB)


def test_the_limit_of_cgroup_v1(machine: Machine) -> None:
    """The same for v1, whose files lie in a folder of their own."""
    machine.write("cgroup/memory/memory.limit_in_bytes", f"{4 * MIB}")
    machine.write("cgroup/memory/memory.usage_in_bytes", f"{3 * MIB}")
    machine.write("cgroup/memory/memory.stat", f"inactive_file 0\ntotal_inactive_file {2 * MIB}\n")
    assert machine.memory() == Memory(4 * MIB, 3 * MIB)


@pytest.mark.parametrize("limit", ["max", str(1 << 62)])
def test_a_cgroup_without_a_limit_leaves_the_machines(machine: Machine, limit: str) -> None:
    """`max` in v2, a huge number in v1: the machine's memory is the bound."""
    machine.write("cgroup/memory.max", limit)
    machine.write("cgroup/memory.current", str(MIB))
    assert machine.memory() == Memory(16 * MIB, 8 * MIB)


def test_free_memory_is_never_more_than_the_machine_has(machine: Machine) -> None:
    """A generous limit does not make memory that the machine has given to others."""
    machine.write("cgroup/memory.max", f"{15 * MIB}\n")
    machine.write("cgroup/memory.current", "0\n")
    assert machine.memory() == Memory(15 * MIB, 8 * MIB)


def test_the_tightest_memory_limit_on_the_way_to_the_root_holds(machine: Machine) -> None:
    """A limit of the slice binds the service in it."""
    machine.write("proc/self/cgroup", "0::/shoal.slice/shoal.service\n")
    machine.write("cgroup/shoal.slice/memory.max", str(4 * MIB))
    machine.write("cgroup/shoal.slice/memory.current", str(MIB))
    assert machine.memory() == Memory(4 * MIB, 3 * MIB)


def test_a_path_of_the_host_is_passed_over(machine: Machine) -> None:
    """In a container the cgroup named is the host's; the limit lies at the root."""
    machine.write("proc/self/cgroup", "0::/docker/0123abc\n")
    machine.write("cgroup/cpu.max", "200000 100000\n")
    machine.write("cgroup/memory.max", str(4 * MIB))
    machine.write("cgroup/memory.current", str(MIB))
    assert machine.cpus() == 2
    assert machine.memory() == Memory(4 * MIB, 3 * MIB)


@pytest.mark.parametrize(
    "garbage",
    [
        *("", "\n", "max", "abc", "100000", "1 0", "0 0", "-1 -1", "1e5 100000", "1 2 3"),
        *("\xff\xfe", "Mem", "MemTotal:", "MemTotal: x kB", ":::", "0::/\0", "\xb2 \xb2"),
    ],
    ids=ascii,
)
def test_garbage_never_raises(machine: Machine, garbage: str) -> None:
    """Whatever a file holds, the probes give what the others say, or None."""
    for path in (
        *("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", "memory.current"),
        *("memory.stat", "memory/memory.stat", "memory/memory.usage_in_bytes"),
    ):
        machine.write(f"cgroup/{path}", garbage)
    machine.write("cgroup/memory.max", str(4 * MIB))
    machine.write("proc/self/statm", garbage)
    machine.write("proc/self/limits", "Max data size " + garbage)
    machine.write("proc/self/cgroup", garbage)
    machine.write("proc/meminfo", garbage)
    assert 1 <= machine.cpus() <= 8
    memory = machine.memory()
    assert memory is None or 0 <= memory.free_bytes <= memory.total_bytes
    pages = resident_set_bytes(machine.proc)
    assert pages is None or pages >= 0


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    """Absence is no error."""
    assert cpu_memory(tmp_path, tmp_path) is None
    assert resident_set_bytes(tmp_path) is None


LIMITS_FILE = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max cpu time              unlimited            unlimited            seconds   \n"
    "Max data size             {data:<20} unlimited            bytes     \n"
    "Max address space         {space:<20} unlimited            bytes     \n"
)


def test_the_limits_of_the_process_count_too(machine: Machine) -> None:
    """RLIMIT_AS binds the address space, RLIMIT_DATA private writable memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    machine.write("proc/self/statm", "500 30 4 5 0 60 0\n")
    machine.write("proc/self/limits", LIMITS_FILE.format(data=100 * page, space=800 * page))
    assert machine.limits()[1:] == [
        Memory(100 * page, 40 * page),
        Memory(800 * page, 300 * page),
    ]
    assert machine.memory() == Memory(100 * page, 40 * page)


def test_a_process_without_limits_is_bound_by_none(machine: Machine) -> None:
    """`unlimited` is no number."""
    machine.write("proc/self/statm", "500 30 4 5 0 60 0\n")
    machine.write("proc/self/limits", LIMITS_FILE.format(data="unlimited", space="unlimited"))
    assert machine.limits() == [Memory(16 * MIB, 8 * MIB)]


PRESSURE = "some avg10={} avg60=1.00 avg300=0.50 total=12345\nfull avg10=0.00 avg60=0.00 total=1\n"


def test_stalls_are_those_of_the_own_cgroup(machine: Machine) -> None:
    """The machine's where the cgroup does not tell; as a share, not in percent."""
    assert machine.stalled() == 0
    machine.write("proc/pressure/memory", PRESSURE.format("40.25"))
    assert machine.stalled() == pytest.approx(0.4025)
    machine.write("proc/self/cgroup", "0::/shoal.slice\n")
    machine.write("cgroup/memory.pressure", PRESSURE.format("12.00"))
    assert machine.stalled() == pytest.approx(0.12)
    machine.write("cgroup/shoal.slice/memory.pressure", PRESSURE.format("3.50"))
    assert machine.stalled() == pytest.approx(0.035)


@pytest.mark.skipif(not Path("/proc/pressure/memory").exists(), reason="the kernel has no PSI")
def test_the_kernels_own_file_is_understood(machine: Machine) -> None:
    """What it writes, but for the number, which is zero where memory is plenty."""
    told = Path("/proc/pressure/memory").read_text(encoding="ascii")
    machine.write("proc/pressure/memory", re.sub(r"avg10=[0-9.]+", "avg10=12.34", told, count=1))
    assert machine.stalled() == pytest.approx(0.1234)


@pytest.mark.parametrize("garbage", ["", "some", "some avg10=", "some avg10=x", "some 1.0", "\xb2"])
def test_garbage_is_no_stall(machine: Machine, garbage: str) -> None:
    """A kernel that tells something else tells nothing."""
    machine.write("proc/pressure/memory", garbage)
    assert machine.stalled() == 0


def test_the_tightest_limit_is_what_is_in_use(machine: Machine) -> None:
    """Of a machine that is half full and a cgroup that is three quarters full, the cgroup."""
    machine.write("cgroup/memory.max", f"{4 * MIB}\n")
    machine.write("cgroup/memory.current", f"{3 * MIB}\n")
    machine.write("proc/pressure/memory", PRESSURE.format("5.00"))
    probe = MemoryProbe(["cpu"], Gpus(), machine.cgroup, machine.proc)
    use = probe.look()["cpu"]
    assert (use.used, use.stalled) == (0.75, 0.05)
    assert use.limits == (Memory(4 * MIB, 1 * MIB), Memory(16 * MIB, 8 * MIB))


def test_each_gpu_is_looked_at_for_itself(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not tell is left out."""
    FakeNvml((100, 40), None).install(monkeypatch)
    probe = MemoryProbe(["cpu", "cuda:0", "cuda:1"], Gpus(), machine.cgroup, machine.proc)
    assert probe.look() == {
        "cpu": MemoryUse((Memory(16 * MIB, 8 * MIB),)),
        "cuda:0": MemoryUse((Memory(100, 40),)),
    }


def test_without_proc_no_use_is_seen(tmp_path: Path) -> None:
    """Absence is no error, and no pressure."""
    assert MemoryProbe(["cpu"], Gpus(), tmp_path, tmp_path).look() == {}


def test_the_resident_set_is_counted_in_pages(machine: Machine) -> None:
    """The second number of statm, times the page size."""
    machine.write("proc/self/statm", "500 30 4 5 0 6 0\n")
    assert resident_set_bytes(machine.proc) == 30 * os.sysconf("SC_PAGE_SIZE")


def test_this_process_has_memory_and_can_give_some_back() -> None:
    """On the real machine the numbers are plausible, and trimming does no harm."""
    return_free_memory()
    resident, memory = resident_set_bytes(), cpu_memory()
    assert resident is not None
    assert memory is not None
    assert MIB < resident <= memory.total_bytes


class FakeNvml:
    """Stands for the driver: `memory` by GPU, where an error is raised instead of told."""

    def __init__(self, *memory: tuple[int, int] | None) -> None:
        self._memory = memory

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in (
            *("Init", "DeviceGetCount", "DeviceGetHandleByIndex", "DeviceGetMemoryInfo"),
            "DeviceGetUtilizationRates",
        ):
            monkeypatch.setattr(pynvml, f"nvml{name}", getattr(self, name))

    def Init(self) -> None:  # noqa: N802
        pass

    def DeviceGetCount(self) -> int:  # noqa: N802
        return len(self._memory)

    def DeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def DeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        memory = self._memory[handle]
        if memory is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(total=memory[0], free=memory[1])

    def DeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        if self._memory[handle] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=75, memory=50 + handle)


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library or no driver: no count, no memory, no error."""

    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    gpus = Gpus()
    assert gpus.count is None
    assert gpus.memory(0) is None
    assert gpus.free_bytes() == []


def test_a_driver_without_a_gpu_counts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero GPUs is something else than no driver."""
    FakeNvml().install(monkeypatch)
    gpus = Gpus()
    assert gpus.count == 0
    assert gpus.free_bytes() == []


def test_memory_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each GPU's own; None for one that does not tell, and for one that is not there."""
    FakeNvml((100, 40), None, (200, 150)).install(monkeypatch)
    gpus = Gpus()
    assert gpus.count == 3
    assert gpus.memory(0) == Memory(100, 40)
    assert gpus.memory(1) is None
    assert gpus.memory(3) is None
    assert gpus.free_bytes() == [40, None, 150]


def test_utilization_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each GPU's own, as shares; None for one that does not tell, and for one not there."""
    FakeNvml(None, (100, 40)).install(monkeypatch)
    gpus = Gpus()
    assert gpus.utilization(1) == Utilization(compute=0.75, memory=0.51)
    assert gpus.utilization(0) is None
    assert gpus.utilization(2) is None
