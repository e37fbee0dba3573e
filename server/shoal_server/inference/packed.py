"""A cache of graphs in the form that ONNX Runtime keeps in memory.

Saved after optimisation, weights packed for this CPU's kernels and stored in a file
of their own, a graph opens in half the time, and every session that maps the file
shares its pages: the second one costs megabytes. The form depends on the CPU and on
the runtime, so both are part of the key; nothing is read under another key.

    <root>/<key>/graph.onnx      optimised graph
    <root>/<key>/graph.weights   packed weights, mapped
    <root>/<key>/seal.json       checksum of both, and which source files were verified,
                                 by path: copies of a model share the entry
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import onnxruntime as ort

from shoal_server.registry.scratch import scratch_folder

GRAPH = "graph.onnx"
WEIGHTS = "graph.weights"
SEAL = "seal.json"

_CHUNK_BYTES = 1 << 20
# Smaller tensors stay in the graph.
_EXTERNAL_MIN_BYTES = 1024

# Of a file: device, inode, size, times of the last change of content and of inode.
Signature = list[int]


def signature(path: Path) -> Signature:
    """What changes whenever a file is written to, also when its times are set back.

    Raises:
        OSError: It can not be looked at.
    """
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def packed_key(files: Mapping[str, str]) -> str:
    """Name of the packed form of a graph on this CPU with this runtime.

    Args:
        files: SHA-256 of the graph and its weights, by name.
    """
    parts = [ort.__version__, *_cpu_features(), *(f"{n}={files[n]}" for n in sorted(files))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _cpu_features() -> Iterable[str]:
    yield platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split("\n"):
            name = line.partition(":")[0].strip()
            if name in ("model name", "flags", "Features", "CPU part"):
                yield line
            if not line:  # one core is enough
                return


class PackedCache:
    """Finds and makes packed graphs. Methods block; call them from any thread.

    A cache that can not be written to (a read-only mount) is empty, not an error.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Use `root`, made when first written to.

        Args:
            root: The cache's folder.
            max_bytes: What all entries together may take; the least recently used go.
        """
        self._root = root
        self._max_bytes = max_bytes

    def find(self, key: str) -> Path | None:
        """The packed graph under `key`; None when there is none, or it was damaged."""
        folder = self._root / key
        seal = _read_seal(folder)
        if seal is None:
            return None
        try:
            whole = seal.get("checksum") == _checksum(folder)
        except OSError:
            whole = False
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)  # recently used
        return folder / GRAPH

    def verified(self, key: str) -> dict[str, Signature]:
        """Source files that were verified, by path, as they were then."""
        seal = _read_seal(self._root / key)
        found = seal.get("verified") if seal else None
        return found if isinstance(found, dict) else {}

    def note_verified(self, key: str, verified: Mapping[str, Signature]) -> None:
        """Remember with the entry of `key` that these source files were verified too."""
        folder = self._root / key
        known = self.verified(key)
        seal = _read_seal(folder)
        if seal is None or verified.items() <= known.items():
            return
        fresh = folder / f"{SEAL}.{secrets.token_hex(4)}"
        try:
            _write_seal(fresh, {**seal, "verified": {**known, **verified}})
            fresh.rename(folder / SEAL)
        except OSError:  # read-only, or trimmed just now: they are checked again next time
            with contextlib.suppress(OSError):
                fresh.unlink()

    def make(
        self, key: str, verified: Mapping[str, Signature], save: Callable[[Path], None]
    ) -> Path | None:
        """Make the entry of `key`; it appears whole or not at all.

        Args:
            key: From `packed_key`.
            verified: Source files whose SHA-256 was checked, by path, as they were then.
            save: Writes `graph.onnx` and `graph.weights` into a folder.

        Returns:
            The packed graph; None when the cache can not be written to.
        """
        try:
            with scratch_folder(self._root) as scratch:
                folder = scratch / key
                folder.mkdir()
                save(folder / GRAPH)
                seal = {"checksum": _checksum(folder), "verified": dict(verified)}
                _write_seal(folder / SEAL, seal)
                shutil.rmtree(self._root / key, ignore_errors=True)
                folder.rename(self._root / key)
        except OSError:
            return None
        self._trim(keep=key)
        return self._root / key / GRAPH

    def _trim(self, keep: str) -> None:
        """Remove the least recently used entries above the size limit."""
        with contextlib.suppress(OSError):
            entries = [each for each in self._root.iterdir() if (each / SEAL).is_file()]
            entries.sort(key=lambda each: each.stat().st_mtime, reverse=True)
            used = 0
            for entry in entries:
                used += sum(each.stat().st_size for each in entry.iterdir())
                if used > self._max_bytes and entry.name != keep:
                    shutil.rmtree(entry, ignore_errors=True)


def save_packed(source: Path, target: Path) -> None:
    """Write the packed form of `source`, and its weights beside it.

    Args:
        source: A graph.
        target: Where its packed form goes; `WEIGHTS` lies beside it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # it warns that the form depends on the CPU: we know
    options.optimized_model_filepath = str(target)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", WEIGHTS),
        (
            "session.optimized_model_external_initializers_min_size_in_bytes",
            str(_EXTERNAL_MIN_BYTES),
        ),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(name, value)
    ort.InferenceSession(source, sess_options=options, providers=["CPUExecutionProvider"])


def _read_seal(folder: Path) -> dict[str, object] | None:
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return seal if isinstance(seal, dict) else None


def _write_seal(path: Path, seal: Mapping[str, object]) -> None:
    path.write_text(json.dumps(seal), encoding="ascii")


def _checksum(folder: Path) -> int:
    """CRC-32 of graph and weights: tells damage, at several times a SHA's speed."""
    value = 0
    for name in (GRAPH, WEIGHTS):
        path = folder / name
        if name == WEIGHTS and not path.exists():
            continue  # every tensor was small
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                value = zlib.crc32(chunk, value)
    return value
