"""A server that is killed at any moment loses no change that it acknowledged, and little else."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import cycle
from pathlib import Path

import grpc
import pytest

from shoal.v1 import model_control_pb2 as control_pb
from shoal.v1 import statistics_pb2, usage_pb2
from shoal_server.registry.store import STATE_FILE
from tests.running import RunningServer
from tests.server.api.calls import TIMEOUT_S, Connection, assert_no_surprise, eventually
from tests.tiny_model import make_tiny_model

KILLS = 3
WRITE_S = 0.1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("counted", "pinned"):
        make_tiny_model(tmp_path, name)
    return tmp_path


class Changes(threading.Thread):
    """Pins and unpins a model, one call after the other, until the server is gone.

    Attributes:
        acknowledged: What the last answer said; None: there was none.
        asked: What the last call asked for, answered or not.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self.acknowledged: bool | None = None
        self.asked: bool | None = None
        self.answers = 0

    def run(self) -> None:
        for pin in cycle((True, False)):
            self.asked = pin
            request = control_pb.PinModelRequest(model="pinned", pin=pin)
            try:
                self._connection.control.PinModel(request, timeout=TIMEOUT_S)
            except grpc.RpcError:
                return
            self.acknowledged = pin
            self.answers += 1


def all_time(connection: Connection) -> int:
    """Requests for the counted model, of this server and those before it."""
    request = statistics_pb2.GetStatisticsRequest(model="counted")
    models = connection.control.GetStatistics(request, timeout=TIMEOUT_S).models
    return models[0].all_time.requests if models else 0


def in_history(connection: Connection) -> float:
    """The same, as its pattern has them."""
    request = usage_pb2.GetUsageRequest(model="counted")
    patterns = connection.control.GetUsage(request, timeout=TIMEOUT_S).patterns
    return sum(patterns[0].requests_by_hour) if patterns else 0.0


def on_disk(root: Path) -> int:
    """The same, as the file has them."""
    with closing(sqlite3.connect(root / STATE_FILE, timeout=TIMEOUT_S)) as file:
        rows = file.execute("SELECT value FROM records WHERE kind = 'total'").fetchall()
    return sum(json.loads(value)["requests"] for (value,) in rows)


def is_pinned(connection: Connection) -> bool:
    connection.load("pinned")
    return connection.models()["pinned"].residency.pinned


class Survivor:
    """What is known of a repository whose servers are killed.

    Attributes:
        sent: Requests that were answered, less those known to be lost.
        written: Of these, those that were seen on disk.
        kills: Of servers.
        pins: What the pin may be: as last answered, or as asked for when the server died.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sent = self.written = self.kills = 0
        self.pins: set[bool | None] = {False}

    @contextmanager
    def server(self) -> Iterator[tuple[RunningServer, Connection]]:
        """A server that has just started; what it remembers is as it should be."""
        with (
            RunningServer(
                model_dir=self.root,
                default_model="counted",
                preload="none",
                restore_models=False,
                statistics_write_s=WRITE_S,
            ) as server,
            Connection(server.address) as connection,
        ):
            assert is_pinned(connection) in self.pins
            counted = all_time(connection)
            assert self.written <= counted <= self.sent
            # A request counts here when it comes, there when it ends: one may be between.
            assert counted <= in_history(connection) <= counted + self.kills
            self.sent = counted
            assert_no_surprise(server)
            yield server, connection

    def embed(self, connection: Connection, times: int) -> None:
        for _ in range(times):
            connection.embed("red", model="counted")
            self.sent += 1

    def kill(self, after: int) -> None:
        """Kill a server that is pinning and counting, after so many of both."""
        with self.server() as (server, connection):
            counted = self.sent
            changes = Changes(connection)
            changes.start()
            self.embed(connection, 5)
            eventually(lambda: on_disk(self.root) > counted, "counts are written")
            self.written = on_disk(self.root)
            self.embed(connection, after)
            eventually(lambda: changes.answers > after, "pins are changed")
            server.signal(signal.SIGKILL)
            self.kills += 1
            changes.join(TIMEOUT_S)
            self.pins = {changes.acknowledged, changes.asked}
            server.wait()


def test_kill_9_in_the_middle_of_writes(root: Path) -> None:
    """Again and again: pins are as last answered, or as asked for when it died.

    Totals and patterns have all that was counted before they were written last, count on
    from there, and never count twice.
    """
    survivor = Survivor(root)
    for kill in range(KILLS):
        survivor.kill(after=13 * kill)
    with survivor.server():
        assert survivor.written > 5 * (KILLS - 1)
