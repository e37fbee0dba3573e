"""`shoal models usage`: when models are asked for, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import duration_pb2

from shoal.v1 import usage_pb2 as pb
from shoal_server.cli import usage as module
from tests.running import RunningServer
from tests.server.api.calls import KNOWN_TEXT, Connection
from tests.tiny_model import make_tiny_model

from .conftest import Shoal


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that was asked for one of its models three times."""
    root: Path = tmp_path_factory.mktemp("models")
    make_tiny_model(root, "tiny")
    with RunningServer(model_dir=root, default_model="tiny") as server:
        with Connection(server.address) as connection:
            for _ in range(3):
                connection.embed(KNOWN_TEXT)
        yield server.address


def test_all_names(shoal: Shoal, address: str) -> None:
    """A line each; nothing is expected of what was asked for in this hour only."""
    result = shoal("models", "usage", "--address", address)
    assert (result.exit_code, result.stderr) == (0, "")
    header, line, within, nothing = result.stdout.splitlines()
    assert header.split()[:4] == ["model", "requests", "a", "week"]
    assert line.split()[:2] == ["tiny", "3.0"]
    assert within.startswith("within 15 min")
    assert nothing.strip() == "nothing is expected"


def test_one_name(shoal: Shoal, address: str) -> None:
    """Its week, day by day."""
    lines = shoal("models", "usage", "tiny", "--address", address).stdout.splitlines()
    days = [line for line in lines if line[:3] in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")]
    assert len(days) == 7
    assert sum(float(day.split()[-1]) for day in days) == 3.0
    assert sum(day.count("█") for day in days) == 1


def test_json(shoal: Shoal, address: str) -> None:
    """The answer, by the names of the protos."""
    found = json.loads(shoal("models", "usage", "--json", "--address", address).stdout)
    assert found["patterns"][0]["model"] == "tiny"
    assert len(found["patterns"][0]["requests_by_hour"]) == 168


def test_an_unknown_name(shoal: Shoal, address: str) -> None:
    """One line and a status."""
    result = shoal("models", "usage", "nobody", "--address", address)
    assert result.exit_code == 1
    assert "nobody" in result.stderr


def test_a_week_in_blocks() -> None:
    """As high as the hour's share of the busiest one; a point for none."""
    hours = [0.0] * 168
    hours[0], hours[1], hours[25] = 80.0, 10.0, 40.0
    lines = list(module.week(hours))
    assert lines[0].split() == ["UTC", *(f"{hour:02}" for hour in range(0, 24, 3))]
    assert lines[1].split() == ["Mon", "█", "▂", *"·" * 22, "90.0"]
    assert lines[2].split()[1:3] == ["·", "▅"]
    assert len(lines) == 8


def test_predictions() -> None:
    """What is loaded ahead, and why the others are not."""
    answer = pb.GetUsageResponse(
        horizon=duration_pb2.Duration(seconds=900),
        preload_ahead=True,
        predictions=[
            pb.UsagePrediction(model="a", version="a@1", probability=0.9, expected_requests=12.25),
            pb.UsagePrediction(model="b", probability=0.8, obstacle="in memory"),
        ],
    )
    table = module._predictions(answer)
    cells = [list(column.cells) for column in table.columns]
    assert [list(row) for row in zip(*cells, strict=True)] == [
        ["a", "90%", "12.2", "a@1", "yes"],
        ["b", "80%", "0.0", "", "no: in memory"],
    ]
