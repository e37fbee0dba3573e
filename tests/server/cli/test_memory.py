"""`shoal models memory`, `load`, `unload`, `pin` and `unpin`, on a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import RunningServer
from tests.server.api.calls import eventually
from tests.tiny_model import make_tiny_model

from .conftest import Shoal


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of two models, none in memory."""
    root = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        make_tiny_model(root, name)
    with RunningServer(
        model_dir=root, default_model="one", preload="none", ram_idle_s=600, pressure_interval_s=0
    ) as server:
        yield server.address


def run(shoal: Shoal, address: str, *arguments: str) -> str:
    """What a command prints; it must end well."""
    result = shoal("models", *arguments, "--address", address)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def test_a_model_comes_stays_and_goes(shoal: Shoal, address: str) -> None:
    """Each command says what the model is then."""
    assert run(shoal, address, "load", "one").startswith("one@1: ready, on cpu, ")
    assert run(shoal, address, "pin", "one").endswith(", pinned\n")
    assert "pinned" not in run(shoal, address, "unpin", "one")
    assert run(shoal, address, "load", "one", "--pin").endswith(", pinned\n")
    gone = run(shoal, address, "unload", "one", "--force-after", "5")
    assert gone == "one@1: registered (asked)\n"


def test_memory_shows_who_is_there_and_who_left(shoal: Shoal, address: str) -> None:
    """A table for people with the reasons, and the same as JSON."""
    run(shoal, address, "load", "two", "--pin")
    run(shoal, address, "load", "one")
    run(shoal, address, "unload", "one")
    lines = [line.split() for line in run(shoal, address, "memory").splitlines()]
    assert ["device", "pressure", "in", "use", "models", "bytes", "budget"] in lines
    two = next(line for line in lines if line[0] == "two@1")
    assert two[1:3] == ["cpu", "ready"]
    assert two[-4:] == ["for", "ever", "pinned", "asked"]
    one = next(line for line in lines if line[0] == "one@1")
    assert one[-1] == "asked"
    facts = json.loads(run(shoal, address, "memory", "--json"))
    assert facts["residents"][0]["residency"]["pinned"] is True
    assert facts["departures"][0]["reason"] == "UNLOAD_REASON_ASKED"
    assert facts["devices"][0]["resident_models"] == 1


def test_memory_says_how_long_a_model_stays(shoal: Shoal, address: str) -> None:
    """The idle time left, of one that is not pinned."""
    run(shoal, address, "load", "two", "--unpin")
    resident = json.loads(run(shoal, address, "memory", "--json"))["residents"][0]
    assert 0 < float(resident["residency"]["idle_left"].removesuffix("s")) <= 600


def test_memory_shows_what_is_warm(shoal: Shoal, tmp_path: Path) -> None:
    """With its size and the time that is left for it in RAM."""
    make_tiny_model(tmp_path, "one")
    with RunningServer(
        "tests.fake_gpu", model_dir=tmp_path, default_model="one", gpu_idle_s=0.05
    ) as server:
        eventually(
            lambda: "warm in RAM" in run(shoal, server.address, "memory"), "the model is warm"
        )
        lines = [line.split() for line in run(shoal, server.address, "memory").splitlines()]
        at = lines.index(["warm", "in", "RAM", "bytes", "last", "use", "idle", "left"])
        assert lines[at + 1][0] == "one@1"
        facts = json.loads(run(shoal, server.address, "memory", "--json"))
        (warm,) = facts["warm_models"]
        assert int(warm["memory_bytes"]) > 0
        assert 0 < float(warm["idle_left"].removesuffix("s")) <= 1800


def test_pinning_what_is_not_there_is_refused_in_one_line(shoal: Shoal, address: str) -> None:
    """The server's own words, on standard error, and exit status 1."""
    run(shoal, address, "unload", "one")
    result = shoal("models", "pin", "one", "--address", address)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "shoal: model one@1 is not in memory; `shoal models load --pin` loads and pins it\n"
    )
