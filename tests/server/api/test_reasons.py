"""Why models came into memory and left it, and how often they were used, as it really was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import updates_pb2 as updates_pb
from shoal.v1 import versions_pb2 as versions_pb
from tests.reference import keep_vectors
from tests.running import RunningServer
from tests.tiny_model import make_tiny_model

from .calls import KNOWN_TEXT, TIMEOUT_S, Connection, assert_no_surprise, eventually, refusal


def add(root: Path, name: str, version: str, *, good: bool = True) -> None:
    """Prepare a version; one that is no good has other vectors kept with it than it gives."""
    model = make_tiny_model(root.parent / "staged", name, version=version)
    if not good:
        keep_vectors(model, texts=("red", "blue"), vectors=-np.stack([model.vector("red")] * 2))
    (root / name).mkdir(parents=True, exist_ok=True)
    model.folder.rename(root / name / version)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, version in (("switched", "1"), ("switched", "2"), ("updated", "1"), ("left", "1")):
        add(tmp_path / "models", name, version)
    return tmp_path / "models"


@pytest.fixture
def running(root: Path) -> Iterator[RunningServer]:
    with RunningServer(model_dir=root, default_model="left", preload="none") as running:
        yield running


@pytest.fixture
def server(running: RunningServer) -> Iterator[Connection]:
    with Connection(running.address) as connection:
        yield connection
    assert_no_surprise(running)


def departures(server: Connection) -> dict[str, str]:
    return {
        f"{each.model}@{each.version}": pb.UnloadReason.Name(each.reason)
        for each in server.info().departures
    }


def switch(server: Connection, target: str) -> None:
    targets = [versions_pb.AliasTarget(model=target)]
    request = versions_pb.SwitchModelRequest(alias="prod", targets=targets)
    server.control.SwitchModel(request, timeout=TIMEOUT_S)


def test_who_leaves_is_told_with_its_reason(server: Connection, root: Path) -> None:
    """Only what somebody called UnloadModel for was asked to."""
    switch(server, "switched@1")
    switch(server, "switched@2")
    server.embed(KNOWN_TEXT, model="updated")
    add(root, "updated", "2", good=False)
    refusal(
        lambda: server.control.UpdateModel(
            updates_pb.UpdateModelRequest(model="updated"), timeout=TIMEOUT_S
        )
    )
    server.embed(KNOWN_TEXT, model="left")
    server.control.DeregisterModel(pb.DeregisterModelRequest(model="left"), timeout=TIMEOUT_S)
    server.unload("updated@1")
    expected = {
        "switched@1": "UNLOAD_REASON_SWITCHED",
        "updated@2": "UNLOAD_REASON_REJECTED",
        "left@1": "UNLOAD_REASON_DEREGISTERED",
        "updated@1": "UNLOAD_REASON_ASKED",
    }
    eventually(lambda: departures(server) == expected, "each has its reason")


def test_only_requests_are_uses(server: Connection) -> None:
    """Not loads, warm-ups, switches, verifications and profiles."""
    switch(server, "switched@1")
    server.load("switched@1")
    server.embed(KNOWN_TEXT, model="prod")
    (resident,) = server.info().residents
    assert resident.residency.load_reason == pb.LOAD_REASON_SWITCHED
    assert resident.residency.uses == 1
    switch(server, "switched@2")
    eventually(lambda: len(server.info().residents) == 1, "the old one has left")
    (resident,) = server.info().residents
    assert (resident.version, resident.residency.uses) == ("2", 0)
