"""A cache of graphs in the form that ONNX Runtime keeps in memory.

Saved after optimisation, weights packed for this CPU's kernels and stored in a file
of their own, a graph opens in half the time, and every session that maps the file
shares its pages: the second one costs megabytes. The form depends on the CPU and on
the runtime, so both are part of the key; nothing is read under another key.

    <root>/<key>/graph.onnx      optimised graph
    <root>/<key>/graph.weights   packed weights, mapped
    <root>/<key>/seal.json       checksum of both; which source files were verified, by
                                 path (copies of a model share the entry); and the
                                 signatures of both when the checksum was last right
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import onnxruntime as ort

from shoal_server.registry.scratch import scratch_folder
from shoal_server.registry.verification import Signature, is_settled, signature

GRAPH = "graph.onnx"
WEIGHTS = "graph.weights"
SEAL = "seal.json"

_CHUNK_BYTES = 1 << 20
# Of what `packing` makes; what an older one made is not read.
_FORM = "2"


def packed_key(files: Mapping[str, str]) -> str:
    """Name of the packed form of a graph on this CPU with this runtime.

    Args:
        files: SHA-256, or whatever else tells contents apart, of the graph and its
            weights, by name.
    """
    parts = [_FORM, ort.__version__, *_cpu_features(), *(f"{n}={files[n]}" for n in sorted(files))]
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

    def __init__(self, root: Path, max_bytes: int, *, trust_signatures: bool = True) -> None:
        """Use `root`, made when first written to.

        Args:
            root: The cache's folder.
            max_bytes: What all entries together may take; the least recently used go.
            trust_signatures: Do not read again what was checked and not written to since.
        """
        self._root = root
        self._max_bytes = max_bytes
        self._trust_signatures = trust_signatures

    def find(self, key: str, *, trust: bool = True) -> Path | None:
        """The packed graph under `key`; None when there is none, or it was damaged.

        Args:
            key: From `packed_key`.
            trust: False: read it, also where nobody seems to have written to it.
        """
        folder = self._root / key
        seal = _read_seal(folder)
        if seal is None:
            return None
        try:
            whole = self._is_whole(folder, seal, trust and self._trust_signatures)
        except FileNotFoundError:
            whole = False
        except OSError:  # it may be the machine's trouble, not the entry's
            return None
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)  # recently used
        return folder / GRAPH

    def _is_whole(self, folder: Path, seal: Mapping[str, object], trust: bool) -> bool:
        at_ns = time.time_ns()
        seen = {path.name: signature(path) for path in _parts(folder)}
        if trust and seal.get("seen") == seen:
            return True
        if seal.get("checksum") != _checksum(folder):
            return False
        if all(is_settled(each, at_ns) for each in seen.values()):
            _replace_seal(folder, {**seal, "seen": seen})
        return True

    def verified(self, key: str) -> dict[str, Signature]:
        """Source files that were verified, by path, as they were then."""
        seal = _read_seal(self._root / key)
        return _verified(seal) if seal and self._trust_signatures else {}

    def note_verified(self, key: str, verified: Mapping[str, Signature]) -> None:
        """Remember with the entry of `key` that these source files were verified too."""
        folder = self._root / key
        seal = _read_seal(folder)
        if seal is not None and not verified.items() <= _verified(seal).items():
            _replace_seal(folder, {**seal, "verified": {**_verified(seal), **verified}})

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
                if self.find(key) is None:
                    shutil.rmtree(self._root / key, ignore_errors=True)
                    folder.rename(self._root / key)
                else:  # a copy of the model was faster, and uses it
                    self.note_verified(key, verified)
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


def _read_seal(folder: Path) -> dict[str, object] | None:
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return seal if isinstance(seal, dict) else None


def _verified(seal: Mapping[str, object]) -> dict[str, Signature]:
    found = seal.get("verified")
    return found if isinstance(found, dict) else {}


def _write_seal(path: Path, seal: Mapping[str, object]) -> None:
    path.write_text(json.dumps(seal), encoding="ascii")


def _replace_seal(folder: Path, seal: Mapping[str, object]) -> None:
    fresh = folder / f"{SEAL}.{secrets.token_hex(4)}"
    try:
        _write_seal(fresh, seal)
        fresh.rename(folder / SEAL)
    except OSError:  # read-only, or trimmed just now: all is checked again next time
        with contextlib.suppress(OSError):
            fresh.unlink()


def _parts(folder: Path) -> list[Path]:
    """The graph and its weights, if it has any: every tensor may be small."""
    graph, weights = folder / GRAPH, folder / WEIGHTS
    return [graph, weights] if weights.exists() else [graph]


def _checksum(folder: Path) -> int:
    """CRC-32 of graph and weights: tells damage, at several times a SHA's speed."""
    value = 0
    for path in _parts(folder):
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                value = zlib.crc32(chunk, value)
    return value
