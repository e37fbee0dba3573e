"""What this machine gives us: CPUs, memory, GPUs. Reads only; absence is no error."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pynvml

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")

# cgroup v1 writes a number near 2^63 where there is none.
_NO_LIMIT_BYTES = 1 << 60

_READ_BYTES = 1 << 16
# Of /proc/meminfo: what is asked for stands in front.
_MEMINFO_LINES = 8


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a device, in bytes."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Utilization:
    """Of a GPU: shares of its driver's last sampling period, in [0, 1]."""

    compute: float
    """In which a kernel ran."""
    memory: float
    """In which memory was read or written."""


def available_cpus(cgroup: Path = CGROUP_ROOT, proc: Path = PROC) -> int:
    """CPUs that this process may use, at least 1.

    The smaller of the affinity mask and the cgroup's quota (v2 `cpu.max`, v1
    `cpu.cfs_quota_us`), not the host's count: threads above it only take turns.
    """
    affinity = len(os.sched_getaffinity(0))
    quotas = [quota for at in _cgroups("cpu", cgroup, proc) if (quota := _cpu_quota(at))]
    return max(1, min([affinity, *map(math.ceil, quotas)]))


def _cpu_quota(folder: Path) -> float | None:
    v2 = [_int(word) for word in _words(folder / "cpu.max")]
    v1 = [_first_int(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    for pair in (v2, v1):
        match pair:
            case [int(quota), int(period)] if quota > 0 and period > 0:
                return quota / period
    return None


def cpu_memory(cgroup: Path = CGROUP_ROOT, proc: Path = PROC) -> Memory | None:
    """Memory that this process may use: what the tightest of its limits leaves."""
    known = memory_limits(cgroup, proc)
    if not known:
        return None
    return Memory(
        total_bytes=min(each.total_bytes for each in known),
        free_bytes=min(each.free_bytes for each in known),
    )


def memory_limits(cgroup: Path = CGROUP_ROOT, proc: Path = PROC) -> list[Memory]:
    """Each limit that holds for this process: its cgroups', the machine's, its own (rlimits).

    Page cache does not count as used: the kernel drops it when memory is short.
    """
    limited = [memory for at in _cgroups("memory", cgroup, proc) if (memory := _limited(at))]
    machine = _machine_memory(proc)
    return [*limited, *([machine] if machine else []), *_process_limits(proc)]


def memory_stalled(cgroup: Path = CGROUP_ROOT, proc: Path = PROC) -> float:
    """Share of the last ten seconds in which some task stalled for memory (Linux PSI).

    Of this process's own cgroup where that tells, else of the machine; 0 where neither does.
    """
    folders = [*reversed(_cgroups("memory", cgroup, proc))]
    for path in (*(at / "memory.pressure" for at in folders), proc / "pressure" / "memory"):
        for line in _text(path).splitlines():
            match line.split():
                case ["some", average, *_] if (value := _decimal(average, "avg10=")) is not None:
                    return min(1.0, value / 100)
    return 0.0


def _limited(folder: Path) -> Memory | None:
    limit = _first_int(folder / "memory.max", folder / "memory.limit_in_bytes")
    if limit is None or limit >= _NO_LIMIT_BYTES:
        return None
    used = _first_int(folder / "memory.current", folder / "memory.usage_in_bytes")
    if used is None:
        return None
    stat = _fields(folder / "memory.stat")  # v1 counts the children under names of their own
    reclaimable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return Memory(limit, min(limit, max(0, limit - used + reclaimable)))


def _cgroups(controller: str, root: Path, proc: Path) -> list[Path]:
    """This process's cgroup and those above it: the tightest limit holds (v2 and v1).

    In a container the path told is often the host's; then only the root is there.
    """
    folders = [root, root / controller]
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        parts = Path(path).parts[1:]
        folders += [top.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return folders


def _machine_memory(proc: Path) -> Memory | None:
    fields = _fields(proc / "meminfo", _MEMINFO_LINES)  # kB
    if "MemTotal" not in fields:
        return None
    free = fields.get("MemAvailable", fields.get("MemFree", 0))
    return Memory(fields["MemTotal"] * 1024, free * 1024)


def _process_limits(proc: Path) -> list[Memory]:
    """RLIMIT_AS and RLIMIT_DATA, where they are set."""
    pages = [_int(word) for word in _words(proc / "self" / "statm")]
    if len(pages) < 6:
        return []
    # In statm: the whole address space comes first, private writable memory sixth.
    used_pages = {"Max address space": pages[0], "Max data size": pages[5]}
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    found = []
    for line in _text(proc / "self" / "limits").splitlines():
        for name, used in used_pages.items():
            if not line.startswith(name):
                continue
            soft = line.removeprefix(name).split()
            if soft and (limit := _int(soft[0])) and used is not None:
                found.append(Memory(limit, max(0, limit - used * page_bytes)))
    return found


def resident_set_bytes(proc: Path = PROC) -> int | None:
    """Memory of this process that is in RAM; None where /proc does not say."""
    match [_int(word) for word in _words(proc / "self" / "statm")]:
        case [_, int(pages), *_]:
            return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def return_free_memory() -> None:
    """Give the allocator's free pages back to the system (glibc; elsewhere nothing).

    Without it most of an unloaded model stays in the process (docs/performance.md).
    """
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Gpus:
    """GPUs through NVML. Without a driver there are none, and that is no error."""

    def __init__(self) -> None:
        try:
            pynvml.nvmlInit()
            self._handles = [
                pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())
            ]
            self.has_driver = True
        except pynvml.NVMLError:
            self._handles = []
            self.has_driver = False

    @property
    def count(self) -> int | None:
        """GPUs; None when no driver answers."""
        return len(self._handles) if self.has_driver else None

    def memory(self, index: int) -> Memory | None:
        """Memory of GPU `index`; None when it can not be told."""
        if index >= len(self._handles):
            return None
        try:
            info = pynvml.nvmlDeviceGetMemoryInfo(self._handles[index])
        except pynvml.NVMLError:
            return None
        return Memory(int(info.total), int(info.free))

    def name(self, index: int) -> str:
        """Of GPU `index` and its driver, in words; empty when it can not be told."""
        if index >= len(self._handles):
            return ""
        try:
            name = pynvml.nvmlDeviceGetName(self._handles[index])
            return f"{name}, driver {pynvml.nvmlSystemGetDriverVersion()}"
        except pynvml.NVMLError:
            return ""

    def utilization(self, index: int) -> Utilization | None:
        """How busy GPU `index` is; None when it can not be told."""
        if index >= len(self._handles):
            return None
        try:
            rates = pynvml.nvmlDeviceGetUtilizationRates(self._handles[index])
        except pynvml.NVMLError:
            return None
        return Utilization(compute=rates.gpu / 100, memory=rates.memory / 100)

    def free_bytes(self) -> list[int | None]:
        """Free memory of each GPU."""
        memories = (self.memory(index) for index in range(len(self._handles)))
        return [memory.free_bytes if memory else None for memory in memories]


def _text(path: Path) -> str:
    # Not by `Path.read_text`, which takes four times as long: a look reads a dozen files.
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ""
    try:
        parts = []
        while part := os.read(file, _READ_BYTES):
            parts.append(part)
    except OSError:
        return ""
    finally:
        os.close(file)
    return b"".join(parts).decode("ascii", errors="replace")


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _fields(path: Path, lines: int | None = None) -> dict[str, int]:
    """Lines of `name value` or `name: value unit`, those with a number; the first so many."""
    fields = {}
    for line in _text(path).splitlines()[:lines]:
        match line.split():
            case [name, word, *_] if (value := _int(word)) is not None:
                fields[name.removesuffix(":")] = value
    return fields


def _first_int(*paths: Path) -> int | None:
    for path in paths:
        words = _words(path)
        if words and (value := _int(words[0])) is not None:
            return value
    return None


def _decimal(word: str, prefix: str) -> float | None:
    digits = word.removeprefix(prefix)
    plain = digits.isascii() and digits.replace(".", "", 1).isdigit()
    return float(digits) if word.startswith(prefix) and plain else None


def _int(word: str) -> int | None:
    """A number as the kernel writes it; None for what stands for none, such as `max` and -1."""
    return int(word) if word.isascii() and word.isdigit() else None
