"""What was in memory comes back after a restart, where there is free memory for it."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import verification_pb2
from shoal_server.registry.manifest import GRAPH_FILE, MODEL_FILE, ModelManifest
from shoal_server.registry.store import STATE_FILE
from tests.reference import keep_vectors
from tests.running import RunningServer
from tests.server.api.calls import KNOWN_TEXT, TIMEOUT_S, Connection, assert_no_surprise, eventually
from tests.tiny_model import make_tiny_model

NAMES = ("rarely", "often", "sometimes", "never")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        make_tiny_model(tmp_path, name)
    return tmp_path


def run_once(root: Path, ends_by: signal.Signals = signal.SIGTERM) -> None:
    """A server in whose memory three models are, used differently often, when it ends.

    The one that was used most was loaded anew since.
    """
    with RunningServer(model_dir=root, preload="none") as server:
        with Connection(server.address) as connection:
            for name, times in (("rarely", 1), ("sometimes", 5), ("often", 10)):
                for _ in range(times):
                    connection.embed(KNOWN_TEXT, model=name)
            connection.unload("often")
            eventually(lambda: noted(root) == {"rarely@1", "sometimes@1"}, "it left")
            connection.load("often")
            connection.load("never")
            connection.unload("never")
            # Nobody waits for these records, which are written when there is time.
            eventually(lambda: noted(root) == {"rarely@1", "often@1", "sometimes@1"}, "all noted")
        server.signal(ends_by)
        server.wait()


def noted(root: Path) -> set[str]:
    """What the file says is in memory."""
    with closing(sqlite3.connect(root / STATE_FILE, timeout=TIMEOUT_S)) as file:
        return {key for (key,) in file.execute("SELECT key FROM records WHERE kind = 'resident'")}


def in_memory(connection: Connection) -> list[str]:
    """The models in memory, the one loaded first in front."""
    found = [model for model in connection.models().values() if model.HasField("residency")]
    found.sort(key=lambda model: model.residency.loaded_at.ToNanoseconds())
    return [model.name for model in found]


def test_the_most_used_comes_first(root: Path) -> None:
    """And after the server is ready; what was unloaded before does not come."""
    run_once(root)
    with (
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: len(in_memory(connection)) == 3, "three models in memory")
        assert in_memory(connection) == ["often", "sometimes", "rarely"]
        reason = connection.models()["often"].residency.load_reason
        assert reason == control_pb.LOAD_REASON_RESTORED
        ready, *loads = (
            number
            for number, line in enumerate(server.output)
            if "shoal: ready" in line or "model_loaded" in line
        )
        assert "shoal: ready" in server.output[ready]
        assert len(loads) == 3
        assert_no_surprise(server)


def test_nothing_comes_back_while_memory_is_short(root: Path) -> None:
    """From the elevated level on; the server serves, and says what it left out."""
    run_once(root)
    with (
        RunningServer(
            model_dir=root,
            preload="none",
            pressure_lower_threshold=1e-9,
            pressure_threshold=2e-9,
            pressure_critical_threshold=1.0,
            pressure_hold_s=0,
        ) as server,
        Connection(server.address) as connection,
    ):
        eventually(
            lambda: sum("former_resident_left_out" in line for line in server.output) == 3,
            "all of them are left out",
        )
        assert any("memory" in line and "often@1" in line for line in server.output)
        assert in_memory(connection) == []
        connection.embed(KNOWN_TEXT, model="often")


def test_a_pinned_one_is_pinned_again(root: Path) -> None:
    """Though the server was killed as soon as it had answered; unpinned ones are not."""
    with (
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        for name in ("rarely", "often", "sometimes"):
            connection.load(name, pin=True)
        connection.embed(KNOWN_TEXT, model="never")
        pin(connection, "often", False)
        connection.unload("sometimes")
        connection.load("sometimes")
        pin(connection, "never", True)
        server.signal(signal.SIGKILL)
        server.wait()
    with (
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: len(in_memory(connection)) == 4, "four models in memory")
        models = connection.models()
        assert {name for name in NAMES if models[name].residency.pinned} == {"rarely", "never"}
        assert_no_surprise(server)


def pin(connection: Connection, model: str, pinned: bool) -> None:
    request = control_pb.PinModelRequest(model=model, pin=pinned)
    connection.control.PinModel(request, timeout=TIMEOUT_S)


def test_a_name_goes_on_meaning_what_it_meant(root: Path) -> None:
    """In lists and for the first request, though newer versions came while nobody served."""
    run_once(root, signal.SIGKILL)
    add_newer(root)
    with (
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        assert connection.models()["often"].version == "1"
        assert connection.embed(KNOWN_TEXT, model="often").version == "1"


def test_a_name_that_nobody_asked_for_yet_is_updated(root: Path) -> None:
    """From what it meant to the newest version that is good; nobody meets a bad one."""
    run_once(root)
    add_newer(root)
    with (
        RunningServer(
            model_dir=root, preload="none", auto_update="repository", auto_update_interval_s=1
        ) as server,
        Connection(server.address) as connection,
    ):
        request = control_pb.WatchEventsRequest(
            after_sequence=0, kinds=[control_pb.EVENT_KIND_MODEL_UPDATED]
        )
        events = connection.control.WatchEvents(request, timeout=TIMEOUT_S)
        told = next(each.event.model_updated for each in events if each.HasField("event"))
        events.cancel()
        assert (told.model, told.before, told.after) == ("often", "1", "2")
        assert connection.embed(KNOWN_TEXT, model="often").version == "2"


def add_newer(root: Path) -> None:
    """A second version, and a third that can not be loaded."""
    make_tiny_model(root, "often", version="2", seed=2)
    make_tiny_model(root, "often", version="3", replaced={GRAPH_FILE: b"no graph"})


@pytest.mark.parametrize("how", ["by version", "default_version", "bad"])
def test_a_name_may_mean_something_else(root: Path, how: str) -> None:
    """What was asked for by its version alone, model.toml, and what is known to be bad decide."""
    model = make_tiny_model(root, "marked")
    keep_vectors(model, texts=("red",), vectors=-model.vector("red")[np.newaxis])
    with (
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        connection.embed(KNOWN_TEXT, model="marked@1" if how == "by version" else "marked")
        if how == "bad":
            request = verification_pb2.VerifyModelRequest(model="marked")
            connection.control.VerifyModel(request, timeout=TIMEOUT_S)
        server.signal(signal.SIGTERM)
        server.wait()
    make_tiny_model(root, "marked", version="2", seed=2)
    if how == "default_version":
        (root / "marked" / MODEL_FILE).write_text(ModelManifest(default_version="2").to_toml())
    with (
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: any("model_loaded" in line for line in server.output), "it is back")
        assert connection.embed(KNOWN_TEXT, model="marked").version == "2"


def test_after_kill_9_they_come_back_too(root: Path) -> None:
    """In whatever order: how often they were used is not quite up to date."""
    run_once(root, signal.SIGKILL)
    with (
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: len(in_memory(connection)) == 3, "three models in memory")
        assert set(in_memory(connection)) == {"often", "sometimes", "rarely"}
        assert_no_surprise(server)


def test_nothing_is_evicted_for_them(root: Path) -> None:
    """Where there is room for two, the two most used come."""
    run_once(root)
    with (
        RunningServer(model_dir=root, preload="none", max_resident_models=2) as server,
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
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: len(in_memory(connection)) == 2, "two models in memory")
        (line,) = [line for line in server.output if "former_resident_left_out" in line]
        assert "often@1" in line
        assert_no_surprise(server)


def test_where_it_is_off_nothing_comes_back(root: Path) -> None:
    """Nor later, when it is turned on: what was in memory is what was there last."""
    run_once(root)
    with (
        RunningServer(model_dir=root, preload="none", restore_models=False) as server,
        Connection(server.address) as connection,
    ):
        connection.embed(KNOWN_TEXT, model="never")
        assert in_memory(connection) == ["never"]
    with (
        RunningServer(model_dir=root, preload="none") as server,
        Connection(server.address) as connection,
    ):
        eventually(lambda: in_memory(connection), "a model in memory")
        assert in_memory(connection) == ["never"]
