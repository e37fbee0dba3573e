"""scripts/check_cuda.py on the CPU, with a model of a few kilobytes: that it runs, and tells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import without_gpu
from tests.tiny_model import TinyModel, add_tiny_variant, make_tiny_model

ROOT = Path(__file__).parents[2]
TEXTS = ["red", "green blue", "violet yellow orange red", "blue " * 12, "red green", ""]


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    return make_tiny_model(tmp_path / "models")


def check(tiny: TinyModel, *options: str) -> subprocess.CompletedProcess[str]:
    texts = tiny.root.parent / "texts.json"
    texts.write_text(json.dumps(TEXTS * 4))
    command = [sys.executable, "scripts/check_cuda.py", f"--models={tiny.root}", "--model=tiny"]
    quick = ["--quick", f"--texts={texts}", "--seconds=0.1", "--callers=2", "--request-texts=4"]
    return subprocess.run(
        [*command, *quick, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )


def failures(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("FAIL")]


def test_a_right_model_passes(tiny: TinyModel, tmp_path: Path) -> None:
    """Every step runs: both precisions are compared, a server is asked, and figures are written."""
    add_tiny_variant(tiny, "fp16", seed=0)  # the same table: the same vectors
    file = tmp_path / "found.json"
    done = check(tiny, "--device=cpu", f"--json={file}")
    assert (done.returncode, failures(done)) == (0, []), done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert len(found["checks"]) == 13
    assert all(each["holds"] for each in found["checks"])
    figures = found["figures"]["given"]
    assert figures["bare, texts/s"] > 0
    assert figures["share"] == figures["served, texts/s"] / figures["bare, texts/s"]


def test_wrong_vectors_fail(tiny: TinyModel) -> None:
    """A variant of another table is found out, by name, and the status says so."""
    add_tiny_variant(tiny, "fp16", seed=1)
    done = check(tiny, "--device=cpu")
    assert done.returncode == 1, done.stdout + done.stderr
    (failure,) = failures(done)
    assert "fp16 on cpu is fp32 on the CPU" in failure


def test_a_missing_variant_fails(tiny: TinyModel) -> None:
    """What was not checked is not passed over; it is told how to make it."""
    done = check(tiny, "--device=cpu")
    assert done.returncode == 1, done.stdout + done.stderr
    (failure,) = failures(done)
    assert "shoal models quantize tiny --precision fp16" in failure


@without_gpu
def test_without_cuda_there_is_nothing_to_check(tiny: TinyModel) -> None:
    """Neither passed nor failed: a status of its own, and the reason."""
    done = check(tiny)
    assert done.returncode == 2
    assert "CUDA" in done.stderr
