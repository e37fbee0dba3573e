"""A version's files at a load: what was prepared, read only where that can not be told else."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal_server.errors import ModelFileCorrupt
from shoal_server.registry import verification
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.verification import Signature, Verification, is_settled, signature
from tests.tiny_model import TinyModel, make_tiny_model

WEIGHTS = "model.onnx.data"
FILES = ("model.onnx", "tokenizer.json", WEIGHTS)
LOOKED_AT_NS = 10_000_000_000


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    """With weights beside its graph."""
    tiny = make_tiny_model(tmp_path / "models")
    weights = b"weights" * 1000
    (tiny.folder / WEIGHTS).write_bytes(weights)
    with (tiny.folder / "version.toml").open("a") as manifest:  # ends with the table of files
        manifest.write(f'"{WEIGHTS}" = "{hashlib.sha256(weights).hexdigest()}"\n')
    return tiny


@pytest.fixture
async def version(tiny: TinyModel) -> ModelVersion:
    version = await Registry(ModelRepository(tiny.root), tiny.name).resolve("")
    assert set(version.files) == set(FILES)
    return version


def look(version: ModelVersion, checked: dict[str, Signature] | None = None) -> Verification:
    return Verification(ModelRepository(version.folder.parents[1]), version, checked or {})


def check(version: ModelVersion, checked: dict[str, Signature] | None = None) -> Verification:
    found = look(version, checked)
    found.check_graph()
    found.check_weights()
    return found


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def signatures(version: ModelVersion) -> dict[str, Signature]:
    paths = [version.folder / name for name in version.files]
    return {str(path): signature(path) for path in paths}


async def test_what_was_prepared_passes(version: ModelVersion) -> None:
    """And is told with the signatures that it had."""
    assert check(version).signatures == signatures(version)


@pytest.mark.parametrize("file", FILES)
async def test_a_changed_byte_is_refused(version: ModelVersion, file: str) -> None:
    """In any file, by its name."""
    flip_a_byte(version.folder / file)
    with pytest.raises(ModelFileCorrupt, match=rf"{file} is not the file that was prepared"):
        check(version)


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json"])
async def test_what_is_opened_is_checked_first(version: ModelVersion, file: str) -> None:
    """Graph and tokenizer tell the runtime what to do; weights are only numbers."""
    flip_a_byte(version.folder / file)
    with pytest.raises(ModelFileCorrupt):
        look(version).check_graph()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: (path.unlink(), path.mkdir())])
async def test_a_missing_file_is_noticed_before_any_is_opened(
    version: ModelVersion, file: str, harm: Callable[[Path], object]
) -> None:
    """Weights too: the runtime would have to open what lies there."""
    harm(version.folder / file)
    with pytest.raises(ModelFileCorrupt, match=f"{file} is missing"):
        look(version).check_graph()


@pytest.mark.parametrize("file", FILES)
async def test_a_file_that_was_checked_and_is_untouched_is_not_read(
    version: ModelVersion, file: str
) -> None:
    """Told by a changed one whose signature is among the checked."""
    flip_a_byte(version.folder / file)
    check(version, signatures(version))


@pytest.mark.parametrize("file", FILES)
async def test_a_file_that_was_touched_is_read(version: ModelVersion, file: str) -> None:
    """Also when its size and the time of its content are as before."""
    checked = signatures(version)
    path = version.folder / file
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of files ticks in milliseconds
        flip_a_byte(path)
        flip_a_byte(path)
    flip_a_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelFileCorrupt, match=file):
        check(version, checked)


async def test_a_file_that_takes_the_place_of_another_is_read(
    version: ModelVersion, tmp_path: Path
) -> None:
    """A rename leaves a file's times as they are; its inode is another."""
    checked = signatures(version)
    path, other = version.folder / "tokenizer.json", tmp_path / "other"
    other.write_bytes(path.read_bytes()[::-1])
    other.rename(path)
    with pytest.raises(ModelFileCorrupt, match=r"tokenizer\.json"):
        check(version, checked)


async def test_files_just_written_are_not_remembered(version: ModelVersion) -> None:
    """A second write might leave their times as they are."""
    assert check(version).checked() == {}


async def test_settled_files_are_remembered(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next load need not read them."""
    monkeypatch.setattr(verification, "_TICK_NS", 0)
    assert check(version).checked() == signatures(version)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [lambda path: os.utime(path, (0, 0)), Path.unlink])
async def test_what_is_touched_after_the_look_is_noticed(
    version: ModelVersion, file: str, harm: Callable[[Path], object]
) -> None:
    """So that nothing is made of files that were changed after they were checked."""
    found = look(version)
    assert found.still_holds()
    harm(version.folder / file)
    assert not found.still_holds()


@pytest.mark.parametrize(
    ("changed_ns", "settled"),
    [
        (LOOKED_AT_NS - 3_000_000_000, True),
        (LOOKED_AT_NS - 1_000_000_000, False),
        (LOOKED_AT_NS, False),
        (LOOKED_AT_NS + 1_000_000_000, False),  # another machine's clock
    ],
)
def test_a_signature_is_settled_after_two_seconds(changed_ns: int, settled: bool) -> None:
    """By the time of the inode's change, which can not be set back."""
    assert is_settled([1, 2, 3, 0, changed_ns], LOOKED_AT_NS) is settled


def test_a_signature_changes_with_the_file(tmp_path: Path) -> None:
    """Also when a change keeps the size and sets the times back."""
    path = tmp_path / "file"
    path.write_bytes(b"one")
    before, stat = signature(path), path.stat()
    assert signature(path) == before
    while path.stat().st_ctime_ns == stat.st_ctime_ns:  # the clock of files ticks in milliseconds
        path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert signature(path) != before


def test_a_file_is_never_newer_than_the_clock(tmp_path: Path) -> None:
    """Else a write after the look could have the time of one before."""
    path = tmp_path / "file"
    for _ in range(100):
        path.write_bytes(b"now")
        assert signature(path)[-1] <= time.time_ns()
