"""The cache of packed graphs: whole or not there, never older than its source."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from shoal_server.inference import packed
from shoal_server.inference.packed import (
    GRAPH,
    SEAL,
    WEIGHTS,
    PackedCache,
    packed_key,
)
from shoal_server.registry import verification

MIB = 1 << 20


def saving(graph: bytes = b"graph", weights: bytes | None = b"weights") -> Callable[[Path], None]:
    """Stands for ONNX Runtime: writes these."""

    def save(target: Path) -> None:
        target.write_bytes(graph)
        if weights is not None:
            (target.parent / WEIGHTS).write_bytes(weights)

    return save


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return PackedCache(tmp_path / "cache", 10 * MIB)


def contents(cache: PackedCache) -> list[str]:
    return sorted(path.name for path in cache._root.iterdir())


def test_what_was_made_is_found(cache: PackedCache) -> None:
    """Under its key and no other, with what was verified when it was made."""
    assert cache.find("k") is None
    assert cache.verified("k") == {}
    made = cache.make("k", {"model.onnx": [1, 2, 3]}, saving())
    assert made is not None
    assert cache.find("k") == made
    assert made.read_bytes() == b"graph"
    assert (made.parent / WEIGHTS).read_bytes() == b"weights"
    assert cache.verified("k") == {"model.onnx": [1, 2, 3]}
    assert cache.find("other") is None


def test_a_graph_without_large_tensors_has_no_weights(cache: PackedCache) -> None:
    """Small tensors stay in the graph, and nothing lies beside it."""
    assert cache.make("k", {}, saving(weights=None)) == cache.find("k") is not None


def test_an_entry_appears_whole(cache: PackedCache) -> None:
    """While it is being made, nobody finds it."""

    def save(target: Path) -> None:
        saving()(target)
        assert cache.find("k") is None

    assert cache.make("k", {}, save) is not None
    assert contents(cache) == ["k"]


def test_an_entry_that_is_there_is_left_alone(cache: PackedCache) -> None:
    """Two copies of a model may make it at once: who was second must not pull it away."""

    def save(target: Path) -> None:
        cache.make("k", {"one": [1]}, saving(b"first"))
        saving(b"second")(target)

    made = cache.make("k", {"other": [2]}, save)
    assert made is not None
    assert made.read_bytes() == b"first"
    assert contents(cache) == ["k"]
    assert cache.verified("k") == {"one": [1], "other": [2]}


def test_a_failed_attempt_leaves_nothing(cache: PackedCache) -> None:
    """A full disk is no entry; whatever the runtime raises is the caller's to see."""

    def full(target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def refused(target: Path) -> None:
        target.write_bytes(b"half")
        raise RuntimeError("no such kernel")

    assert cache.make("k", {}, full) is None
    with pytest.raises(RuntimeError, match="no such kernel"):
        cache.make("k", {}, refused)
    assert contents(cache) == []


def test_what_is_verified_later_is_noted_too(cache: PackedCache) -> None:
    """By path: copies of a model share an entry, and a file that was touched counts anew."""
    made = cache.make("k", {"a": [1], "b": [1]}, saving())
    cache.note_verified("k", {"b": [2], "c": [3]})
    assert cache.verified("k") == {"a": [1], "b": [2], "c": [3]}
    assert cache.find("k") == made
    cache.note_verified("other", {"a": [1]})
    assert cache.verified("other") == {}
    assert contents(cache) == ["k"]


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_entry_is_none(cache: PackedCache, name: str, harm: str) -> None:
    """One changed byte, a missing end, a missing file: not found, and gone from the disk."""
    made = cache.make("k", {}, saving())
    assert made is not None
    path = made.parent / name
    data = path.read_bytes()
    if harm == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    assert cache.find("k") is None
    assert contents(cache) == []


def falsify(made: Path) -> None:
    """Let the checksum be another one: whoever reads the entry now finds it damaged."""
    seal = made.parent / SEAL
    seal.write_text(json.dumps({**json.loads(seal.read_text()), "checksum": -1}))


@pytest.fixture
def no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the files had been made a while ago."""
    monkeypatch.setattr(verification, "_TICK_NS", 0)


@pytest.mark.usefixtures("no_tick")
def test_an_entry_that_was_whole_and_is_untouched_is_not_read_again(cache: PackedCache) -> None:
    """Its files have the signatures that they had when their checksum was right."""
    made = cache.make("k", {}, saving())
    assert made is not None
    assert cache.find("k") == made
    falsify(made)
    assert cache.find("k") == made
    os.utime(made.parent / WEIGHTS, (0, 0))
    assert cache.find("k") is None


def test_an_entry_that_was_just_made_is_read_again(cache: PackedCache) -> None:
    """Files may be changed twice in one tick of their clock."""
    made = cache.make("k", {}, saving())
    assert made is not None
    assert cache.find("k") == made
    falsify(made)
    assert cache.find("k") is None


@pytest.mark.usefixtures("no_tick")
def test_where_signatures_are_not_trusted_an_entry_is_always_read(tmp_path: Path) -> None:
    """What another process noted is not believed either, and stays for those who do."""
    trusting = PackedCache(tmp_path, 10 * MIB)
    made = trusting.make("k", {"f": [1]}, saving())
    assert made is not None
    assert trusting.find("k") == made
    wary = PackedCache(tmp_path, 10 * MIB, trust_signatures=False)
    wary.note_verified("k", {"g": [2]})
    assert (wary.verified("k"), trusting.verified("k")) == ({}, {"f": [1], "g": [2]})
    falsify(made)
    assert wary.find("k") is None


@pytest.mark.parametrize("seal", [None, b"", b"[]", b"{}", b"\xff", b'{"checksum": "x"}'])
def test_an_entry_without_a_sound_seal_is_none(cache: PackedCache, seal: bytes | None) -> None:
    """Whatever the seal holds, it is no reason to fail."""
    made = cache.make("k", {}, saving())
    assert made is not None
    (made.parent / SEAL).unlink()
    if seal is not None:
        (made.parent / SEAL).write_bytes(seal)
    assert cache.verified("k") == {}
    assert cache.find("k") is None
    assert cache.make("k", {}, saving()) is not None


def test_a_cache_that_can_not_be_written_to_is_empty(tmp_path: Path) -> None:
    """Where its folder can not be made there is no cache, and no error."""
    (tmp_path / "file").touch()
    cache = PackedCache(tmp_path / "file" / "cache", 10 * MIB)
    assert cache.make("k", {}, saving()) is None
    assert cache.find("k") is None


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    """Above the size limit: by last use, not by age."""
    cache = PackedCache(tmp_path, 2500)
    for at, key in enumerate("ab"):
        made = cache.make(key, {}, saving(b"x" * 1000))
        assert made is not None
        os.utime(made.parent, (at, at))
    assert cache.find("a") is not None
    cache.make("c", {}, saving(b"x" * 1000))
    assert contents(cache) == ["a", "c"]


def test_the_entry_just_made_stays_whatever_its_size(tmp_path: Path) -> None:
    """The model that needs it is in memory; the others go."""
    cache = PackedCache(tmp_path, 100)
    cache.make("a", {}, saving())
    cache.make("b", {}, saving(b"x" * 1000))
    assert contents(cache) == ["b"]


def test_the_key_tells_graphs_runtimes_and_machines_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A packed form is of one graph, one version of the runtime, one CPU."""
    files = {"model.onnx": "1" * 64, "model.onnx.data": "2" * 64}
    key = packed_key(files)
    assert packed_key(dict(reversed(files.items()))) == key
    others = {packed_key({**files, "model.onnx": "3" * 64}), packed_key({"model.onnx": "1" * 64})}
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "0.0")
        others.add(packed_key(files))
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_cpu_features", lambda: ["another"])
        others.add(packed_key(files))
    assert len(others | {key}) == 5
