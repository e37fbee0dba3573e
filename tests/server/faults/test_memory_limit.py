"""Models that do not fit together, under a limit that the kernel enforces."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from shoal.v1 import embed_pb2
from shoal_server.registry.manifest import GRAPH_FILE
from tests.running import RunningServer
from tests.server.api.calls import Connection, eventually, refusal, rows, unharmed
from tests.tiny_model import TinyModel, make_tiny_model

MIB = 1024 * 1024
WEIGHTS_BYTES = 64 * MIB
MODELS = 8
SWEEPS = 2
# What the process has before it holds any model, of what it may have. The rest is room
# for about three of the models, of which a load takes more while it goes on.
EMPTY_SHARE = 0.65
LOWER, THRESHOLD, CRITICAL = 0.7, 0.78, 0.93
CGROUP_BYTES = 384 * MIB


@pytest.fixture
def heavy(tmp_path: Path) -> list[TinyModel]:
    """Models whose weights take real memory; their files are the same."""
    root = tmp_path / "models"
    graph = _with_long_table(make_tiny_model(tmp_path / "seed"))
    first = make_tiny_model(root, "heavy-0", replaced={GRAPH_FILE: graph})
    found = [first]
    for number in range(1, MODELS):
        name = f"heavy-{number}"
        shutil.copytree(root / first.name, root / name, copy_function=os.link)
        folder = root / name / first.folder.name
        found.append(TinyModel(name, folder, first.table, first.normalized))
    return found


def _with_long_table(tiny: TinyModel) -> bytes:
    """The graph of `tiny`, with rows in its table that no word stands for."""
    model = onnx.load(tiny.folder / GRAPH_FILE)
    table = next(each for each in model.graph.initializer if each.name == "table")
    words = numpy_helper.to_array(table)
    longer = np.zeros((WEIGHTS_BYTES // words[0].nbytes, words.shape[1]), np.float32)
    longer[: len(words)] = words
    table.CopyFrom(numpy_helper.from_array(longer, "table"))
    return model.SerializeToString()


def limit_memory(pid: int) -> int:
    """Bind the address space of a process so that it is full but for a part; returns the limit."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit_bytes = int(pages * resource.getpagesize() / EMPTY_SHARE)
    resource.prlimit(pid, resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    return limit_bytes


def embedded(connection: Connection, name: str) -> embed_pb2.EmbedResponse:
    """The answer of a model; refusals are those that the API documents, and not for ever."""
    answers: list[embed_pb2.EmbedResponse] = []

    def is_answered() -> bool:
        call = connection.start("red blue", model=name)
        if call.exception() is None:
            answers.append(call.result())
            return True
        found = refusal(call.result)
        assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED, found
        assert found.retry_s is not None
        return False

    eventually(is_answered, f"{name} is served")
    return answers[0]


def sweep(connection: Connection, running: RunningServer, models: list[TinyModel]) -> None:
    """Ask each model for a vector, again and again; each must be right, and the server live."""
    for model in models * SWEEPS:
        answer = embedded(connection, model.name)
        assert answer.model == model.name
        np.testing.assert_allclose(rows(answer), [model.vector("red blue")], atol=1e-6)
    assert running.metric("shoal_model_unloads_total", reason="pressure") >= MODELS
    assert running.metric("shoal_model_loads_total", result="ok") >= MODELS * SWEEPS


def serving(models: list[TinyModel]) -> RunningServer:
    """A server of `models`, none of them in memory, that looks at its memory often."""
    return RunningServer(
        model_dir=models[0].root,
        default_model=models[0].name,
        preload="none",
        packed_cache_bytes=0,  # its pages would be the page cache's
        cpu_slots=1,
        pressure_interval_s=0.1,
        pressure_hold_s=0,
        pressure_lower_threshold=LOWER,
        pressure_threshold=THRESHOLD,
        pressure_critical_threshold=CRITICAL,
    )


def test_a_sweep_within_an_address_space(
    heavy: list[TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under RLIMIT_AS each is served when it is asked for, and those used longest ago go."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # else threads reserve address space at random
    with serving(heavy) as running, unharmed(running) as connection:
        connection.unload(heavy[0].name)
        limit_bytes = limit_memory(running.pid)
        assert limit_bytes * (1 - EMPTY_SHARE) < MODELS * WEIGHTS_BYTES
        sweep(connection, running, heavy)
        assert connection.info().devices[0].memory_total_bytes == limit_bytes


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of this process's own that may hold some of the models; else skips."""
    folder = _new_cgroup()
    if folder is None:
        pytest.skip("no cgroup can be made here")
    yield folder
    # Empty once the server has ended; the kernel may take a moment to notice.
    eventually(lambda: _is_removed(folder), f"{folder} is removed")


def _new_cgroup() -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            parent = Path("/sys/fs/cgroup", controllers, path.lstrip("/"))
            limit = "memory.limit_in_bytes" if controllers else "memory.max"
            folder = parent / f"shoal-test-{os.getpid()}"
            try:
                folder.mkdir()
            except OSError:
                continue
            try:
                (folder / limit).write_text(str(CGROUP_BYTES))
            except OSError:
                folder.rmdir()
                continue
            return folder
    return None


def _is_removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def test_a_sweep_within_a_cgroup(heavy: list[TinyModel], cgroup: Path) -> None:
    """Under a limit whose breach is the OOM killer's, it never comes to that."""
    with serving(heavy) as running, unharmed(running) as connection:
        connection.unload(heavy[0].name)
        # What it has is charged to where it came from: the limit is for models alone.
        (cgroup / "cgroup.procs").write_text(str(running.pid))
        sweep(connection, running, heavy)
        assert connection.info().devices[0].memory_total_bytes == CGROUP_BYTES
