"""Three copies of the real model and room for two: nothing is lost, nothing piles up."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import psutil
import pytest

from tests.running import DEFAULT_MODEL, MODELS, RunningServer
from tests.server.api.calls import KNOWN_TEXT, Connection, unharmed

MIB = 1024 * 1024
NAMES = ("first", "second", "third")
BUDGET_BYTES = 400 * MIB
# Far below what the evicted models would take if they stayed: 90 MB each.
GROWTH_BYTES = 100 * MIB
ROUNDS = 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three models of one content: a copied folder is another model."""
    for name in NAMES:
        shutil.copytree(MODELS / DEFAULT_MODEL, tmp_path / name, copy_function=_link)
    return tmp_path


def _link(source: str, target: str) -> None:
    """Share the content where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_real_models_come_and_go(root: Path, real_vector: bytes) -> None:
    """Always the right vector, never a third model, and the memory of those that left is back."""
    choose = random.Random(3)
    with (
        RunningServer(
            model_dir=root,
            default_model="third",
            max_resident_models=2,
            memory_budget_bytes=BUDGET_BYTES,
        ) as running,
        unharmed(running) as connection,
    ):
        process = psutil.Process(running.pid)
        _visit(connection, NAMES, real_vector)
        settled = process.memory_info().rss

        _visit(connection, choose.choices(NAMES, k=ROUNDS), real_vector)
        _visit(connection, NAMES, real_vector)

        assert process.memory_info().rss - settled < GROWTH_BYTES
        assert sum(
            running.metric("shoal_model_evictions_total", model=name) for name in NAMES
        ) > ROUNDS / 5  # fmt: skip


@pytest.fixture
def real_vector(server: RunningServer) -> bytes:
    """What the model gives when it is alone in a server."""
    with Connection(server.address) as connection:
        return connection.embed(KNOWN_TEXT).vectors


def _visit(connection: Connection, names: tuple[str, ...] | list[str], expected: bytes) -> None:
    for name in names:
        answer = connection.embed(KNOWN_TEXT, model=name)
        (device,) = (each for each in connection.info().devices if each.device == "cpu")
        assert (answer.model, answer.vectors) == (name, expected)
        assert device.resident_models <= 2
        assert device.resident_bytes <= BUDGET_BYTES
