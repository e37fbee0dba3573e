"""scripts/carry_to_gpu.py: what is cut into parts comes out as it went in, or not at all."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from scripts.carry_to_gpu import _Joined, _Parts, _requirements, _verify

PART_BYTES = 10_000
CONTENT = random.Random(1).randbytes(45_678)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of parts with one file in them."""
    with (
        _Parts(tmp_path, PART_BYTES) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        info = tarfile.TarInfo("model.onnx")
        info.size = len(CONTENT)
        archive.addfile(info, io.BytesIO(CONTENT))
    return tmp_path


def test_parts_come_together_again(parts: Path) -> None:
    """None is larger than asked for, and joined they are what went in."""
    sizes = [path.stat().st_size for path in sorted(parts.glob("part-*"))]
    assert len(sizes) > 1
    assert max(sizes) == PART_BYTES
    _verify(parts)
    with _Joined(parts) as joined, tarfile.open(fileobj=joined, mode="r|") as archive:
        member = archive.next()
        assert member is not None
        file = archive.extractfile(member)
        assert file is not None
        assert file.read() == CONTENT


@pytest.mark.parametrize("harm", ["change", "remove"])
def test_a_part_that_suffered_on_the_way_is_named(parts: Path, harm: str) -> None:
    """Before anything is unpacked."""
    part = parts / "part-001"
    if harm == "change":
        part.write_bytes(part.read_bytes()[:-1] + b"?")
    else:
        part.unlink()
    with pytest.raises(ValueError, match="part-001"):
        _verify(parts)


def test_packing_again_leaves_no_old_part(parts: Path) -> None:
    """A smaller pack beside the rest of a larger one could not be joined."""
    with _Parts(parts, PART_BYTES) as stream:
        stream.write(b"little")
    assert [path.name for path in parts.glob("part-*")] == ["part-000"]
    _verify(parts)


def test_the_gpu_runtime_is_carried_and_the_cpu_one_is_not() -> None:
    """Both install the same module; our own packages are built, not downloaded."""
    names = [requirement.partition(">")[0] for requirement in _requirements()]
    assert "onnxruntime-gpu" in names
    assert "onnxruntime" not in names
    assert not any(name.startswith("shoal") for name in names)
