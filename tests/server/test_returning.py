"""What was in memory comes back after a restart, if that is wanted and there is room."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.running import RunningServer
from tests.server.api.calls import KNOWN_TEXT, Connection, assert_no_surprise, eventually
from tests.tiny_model import make_tiny_model

NAMES = ("rarely", "often", "sometimes", "never")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        make_tiny_model(tmp_path, name)
    return tmp_path


def run_once(root: Path, ends_by: signal.Signals = signal.SIGTERM) -> None:
    """A server in whose memory three models are, used differently often, when it ends."""
    with RunningServer(model_dir=root, preload="none") as server:
        with Connection(server.address) as connection:
            for name, times in (("rarely", 1), ("sometimes", 5), ("often", 10)):
                for _ in range(times):
                    connection.embed(KNOWN_TEXT, model=name)
            connection.load("never")
            connection.unload("never")
        server.signal(ends_by)
        server.wait()


def in_memory(connection: Connection) -> list[str]:
    """The models in memory, the one loaded first in front."""
    found = [model for model in connection.models().values() if model.HasField("residency")]
    found.sort(key=lambda model: model.residency.loaded_at.ToNanoseconds())
    return [model.name for model in found]


def test_the_most_used_comes_first(root: Path) -> None:
    """What was unloaded before does not come; the default model is not among them here."""
    run_once(root)
    with (
        RunningServer(model_dir=root, preload="none", restore_models=True) as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: len(in_memory(connection)) == 3, "three models in memory")
        assert in_memory(connection) == ["often", "sometimes", "rarely"]
        assert_no_surprise(server)


def test_after_kill_9_they_come_back_too(root: Path) -> None:
    """In whatever order: how often they were used is a minute old."""
    run_once(root, signal.SIGKILL)
    with (
        RunningServer(model_dir=root, preload="none", restore_models=True) as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: len(in_memory(connection)) == 3, "three models in memory")
        assert set(in_memory(connection)) == {"often", "sometimes", "rarely"}
        assert_no_surprise(server)


def test_nothing_is_evicted_for_them(root: Path) -> None:
    """Where there is room for two, the two most used come."""
    run_once(root)
    with (
        RunningServer(
            model_dir=root, preload="none", restore_models=True, max_resident_models=2
        ) as server,
        Connection(server.address) as connection,
    ):
        eventually(
            lambda: any("former_resident_left_out" in line for line in server.output),
            "one left out",
        )
        assert in_memory(connection) == ["often", "sometimes"]


def test_one_that_is_gone_is_left_out(root: Path) -> None:
    """The server starts, says so, and brings the others back."""
    run_once(root)
    shutil.rmtree(root / "often")
    with (
        RunningServer(model_dir=root, preload="none", restore_models=True) as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: len(in_memory(connection)) == 2, "two models in memory")
        (line,) = [line for line in server.output if "former_resident_left_out" in line]
        assert "often@1" in line
        assert_no_surprise(server)


def test_by_default_nothing_comes_back(root: Path) -> None:
    """Nor later, when it is turned on: what was in memory is what was there last."""
    run_once(root)
    with (
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        connection.embed(KNOWN_TEXT, model="never")
        assert in_memory(connection) == ["never"]
    with (
        RunningServer(model_dir=root, preload="none", restore_models=True) as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: in_memory(connection), "a model in memory")
        assert in_memory(connection) == ["never"]
