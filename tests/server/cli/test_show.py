"""`shoal models show` of a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import RunningServer
from tests.tiny_model import add_tiny_variant, make_tiny_model

from .conftest import Shoal


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    add_tiny_variant(make_tiny_model(root))
    return root


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with RunningServer(model_dir=root, default_model="tiny") as server:
        yield server.address


def rows(shoal: Shoal, *options: str) -> dict[str, str]:
    result = shoal("models", "show", "tiny", *options)
    assert result.exit_code == 0, result.stderr
    return {
        field: value.strip()
        for field, _, value in (row.partition(" ") for row in result.stdout.splitlines())
    }


def test_what_a_server_tells(shoal: Shoal, address: str) -> None:
    """State and memory, and what the model can do, in words."""
    told = rows(shoal, "--address", address)
    assert (told["name"], told["state"], told["residency.device"]) == ("tiny", "ready", "cpu")
    assert told["input_types"] == "text, tokens"
    assert told["variants.int8.served"] == "False"
    assert "last_unload_reason" not in told


def test_as_json(shoal: Shoal, address: str) -> None:
    """The message, whole: also what is false or 0."""
    told = json.loads(shoal("models", "show", "tiny", "--address", address, "--json").stdout)
    assert told["state"] == "MODEL_STATE_READY"
    assert (told["residency"]["pinned"], told["residency"]["leases"]) == (False, 0)


def test_a_variable_alone_asks_no_server(
    shoal: Shoal, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an option does: SHOAL_ADDRESS is there for all commands."""
    monkeypatch.setenv("SHOAL_ADDRESS", "127.0.0.1:1")
    assert rows(shoal, "--model-dir", str(root))["folder"] == str(root / "tiny" / "1")
    assert shoal("models", "show", "tiny", "--live", "--timeout", "0.2").exit_code == 1
