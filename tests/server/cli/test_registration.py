"""`shoal models register`, `deregister`, and finding by what models can do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal_server.cli import find
from tests.running import RunningServer
from tests.tiny_model import add_tiny_variant, make_tiny_model

from .conftest import Shoal


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_tiny_model(root, "plain")
    small = make_tiny_model(root, "small")
    add_tiny_variant(small)
    manifest = small.folder / "version.toml"
    manifest.write_text(manifest.read_text().replace("languages = []", 'languages = ["zh-Hant"]'))
    return root


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with RunningServer(model_dir=root, default_model="plain", preload="none") as server:
        yield server.address


def models(shoal: Shoal, *options: str) -> list[str]:
    """The first column of a table, without its title."""
    result = shoal("models", *options)
    assert result.exit_code == 0, result.stderr
    return [row.split()[0] for row in result.stdout.splitlines()[1:]]


def test_there_and_back(shoal: Shoal, address: str) -> None:
    """Each command says what became of the model."""
    at = ("--address", address)
    assert shoal("models", "deregister", "small", *at).stdout == "small: deregistered\n"
    assert models(shoal, "find", *at) == ["plain@1"]
    assert models(shoal, "find", "--deregistered", *at) == ["small@1"]
    gone = json.loads(shoal("models", "find", "--deregistered", "--json", *at).stdout)
    assert [(each["state"], each["state_reason"]) for each in gone] == [
        ("MODEL_STATE_UNSPECIFIED", "deregistered")
    ]
    assert shoal("models", "register", "small", *at).stdout == "small@1: registered\n"
    assert models(shoal, "find", "--deregistered", *at) == []
    again = shoal("models", "register", "small", *at).stdout
    assert again == "small@1: known, and as it was\n"
    told = json.loads(shoal("models", "register", "small", "--json", *at).stdout)
    assert (told["model"]["name"], told["added"], told["changed"]) == ("small", False, False)
    missing = shoal("models", "register", "nobody", *at)
    assert missing.exit_code == 1
    assert missing.stderr == "shoal: there is no model 'nobody'\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--precision", "int8"), ["small@1"]),
        (("--language", "zh"), ["small@1"]),
        (("--language", "zh", "--language", "en"), []),
        (("--input", "text", "--kind", "text_embedding"), ["plain@1", "small@1"]),
        (("--prompt", "passage"), []),
        (("--tokens", "17"), []),
        (("--runs-on", "cpu"), ["plain@1", "small@1"]),
    ],
)
def test_finding(shoal: Shoal, address: str, options: tuple[str, ...], expected: list[str]) -> None:
    """Each option is a filter of the server's."""
    assert models(shoal, "find", *options, "--address", address) == expected


def test_more_than_one_answer_holds(
    shoal: Shoal, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are found that the limit allows, and whoever reads JSON learns that there are more."""
    monkeypatch.setattr(find, "_PAGE", 1)
    at = ("--address", address)
    assert models(shoal, "find", *at) == ["plain@1", "small@1"]
    one = shoal("models", "find", "--limit", "1", "--json", *at)
    assert [each["name"] for each in json.loads(one.stdout)] == ["plain"]
    assert one.stderr == "1 of 2; --limit shows more\n"


def test_a_word_that_is_none_is_refused(shoal: Shoal, address: str) -> None:
    """Before the server is asked."""
    result = shoal("models", "find", "--input", "smell", "--address", address)
    assert result.exit_code == 2
    assert "'smell' is not one of text, tokens" in result.stderr


def test_listing_the_repository(shoal: Shoal, root: Path) -> None:
    """By language and precision, without a server."""
    where = ("--model-dir", str(root))
    assert models(shoal, "list", *where) == ["plain", "small"]
    assert models(shoal, "list", "--precision", "int8", *where) == ["small"]
    assert models(shoal, "list", "--language", "zh-hant", *where) == ["small"]


def test_a_newer_version_beside_the_one_in_memory_is_told(tmp_path: Path, shoal: Shoal) -> None:
    """The one that is named is the one in memory."""
    make_tiny_model(tmp_path)
    with RunningServer(model_dir=tmp_path, default_model="tiny", preload="tiny") as server:
        make_tiny_model(tmp_path, version="2")
        told = shoal("models", "register", "tiny", "--address", server.address).stdout
    assert told.startswith("tiny@1: ")
    assert "; that is in memory and serves on, tiny means another version once" in told
