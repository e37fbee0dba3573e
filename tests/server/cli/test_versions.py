"""`shoal models switch` and its kin, on a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click import unstyle
from typer.testing import CliRunner

from shoal_server.cli.main import make_app
from tests.running import RunningServer
from tests.tiny_model import add_tiny_variant, make_tiny_model

from .conftest import Shoal


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with three versions of one model."""
    root = tmp_path_factory.mktemp("models")
    for version in ("1", "2", "3"):
        make_tiny_model(root, version=version)
    with RunningServer(model_dir=root, preload="none") as server:
        yield server.address


def targets(shoal: Shoal, address: str, alias: str) -> dict[str, int]:
    """What an alias stands for, with the weights."""
    listed = json.loads(shoal("models", "aliases", "--json", "--address", address).stdout)
    return {
        target["model"]: target["weight"]
        for each in listed
        if each["name"] == alias
        for target in each["targets"]
    }


def test_an_alias_from_its_making_to_its_end(shoal: Shoal, address: str) -> None:
    """Each command says what the alias is then; the table marks the current revision."""
    made = shoal("models", "switch", "prod", "tiny@1", "--address", address)
    assert made.stdout.startswith("prod: now tiny@1 (warm after ")
    shared = shoal("models", "switch", "prod", "tiny@1=95", "tiny@2=5", "--address", address)
    assert shared.stdout.startswith("prod: now tiny@1=95 tiny@2=5 (")
    assert targets(shoal, address, "prod") == {"tiny@1": 95, "tiny@2": 5}
    back = shoal("models", "rollback", "prod", "--address", address)
    assert back.stdout.startswith("prod: now tiny@1 (")
    rows = shoal("models", "aliases", "--address", address).stdout.splitlines()
    assert [row.split()[:2] for row in rows[1:]] == [["prod", "3*"], ["prod", "2"], ["prod", "1"]]
    shoal("models", "delete-alias", "prod", "--address", address)
    assert targets(shoal, address, "prod") == {}


def test_pinning_a_name_to_a_version(shoal: Shoal, address: str) -> None:
    """And letting it follow the latest again."""
    pinned = shoal("models", "pin-version", "tiny", "2", "--address", address)
    assert pinned.stdout == "tiny: pinned to tiny@2\n"
    assert shoal("models", "unpin-version", "tiny", "--address", address).stdout == (
        "tiny: now tiny@3\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("switch", "prod", "nothing"), "shoal: there is no model 'nothing'"),
        (("rollback", "nothing"), "shoal: there is no alias 'nothing'"),
        (("delete-alias", "nothing"), "shoal: there is no alias 'nothing'"),
        (("pin-version", "tiny", "9"), "shoal: model 'tiny' has no version '9'"),
    ],
)
def test_a_refusal_is_one_line(
    shoal: Shoal, address: str, arguments: tuple[str, ...], message: str
) -> None:
    """The server's own words, on standard error, and exit status 1."""
    result = shoal("models", *arguments, "--address", address)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", message + "\n")


def test_a_weight_that_is_no_number_is_wrong_usage(shoal: Shoal, address: str) -> None:
    """Nothing is asked of the server."""
    result = shoal("models", "switch", "prod", "tiny=half", "--address", address)
    assert result.exit_code == 2
    assert "'tiny=half'" in result.stderr


def test_tags_and_deprecations(shoal: Shoal, address: str) -> None:
    """Each command says what is then."""
    at = ("--address", address)
    assert shoal("models", "tag", "tiny@1", "a", "b", *at).stdout == "tiny@1: a b\n"
    untagged = shoal("models", "tag", "tiny@1", "--remove", "a", "--remove", "b", *at)
    assert untagged.stdout == "tiny@1: no tags\n"
    old = ("--replacement", "tiny@3", "--refuse-after", "2020-01-01")
    assert shoal("models", "deprecate", "tiny@1", *old, *at).stdout == (
        "tiny@1: deprecated; requests for it are refused from now on\n"
    )
    later = ("--refuse-after", "2999-01-01")
    assert shoal("models", "deprecate", "tiny@1", *later, *at).stdout == (
        "tiny@1: deprecated; requests for it are refused after 2999-01-01 00:00:00 UTC\n"
    )
    assert shoal("models", "deprecate", "tiny@1", *at).stdout == "tiny@1: deprecated\n"
    assert shoal("models", "undeprecate", "tiny@1", *at).stdout == "tiny@1: not deprecated\n"


def test_finding_models(shoal: Shoal, address: str) -> None:
    """A table for people, JSON for programs, and a word about what is not shown."""
    at = ("--address", address)
    shoal("models", "tag", "tiny@3", "prod", *at)
    rows = shoal("models", "find", "--tag", "prod", *at).stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["model", "tiny@3"]
    assert json.loads(shoal("models", "find", "nowhere", "--json", *at).stdout) == []
    wrong = shoal("models", "find", "--state", "asleep", *at)
    assert wrong.exit_code == 2


def test_a_rescan(shoal: Shoal, address: str) -> None:
    """What is new is printed, and that nothing is."""
    shoal("models", "discover", "--address", address)
    assert shoal("models", "discover", "--address", address).stdout == "nothing new\n"
    told = json.loads(shoal("models", "discover", "--address", address, "--json").stdout)
    assert told == {"added": [], "removed": [], "changed": [], "outdated": []}


def test_versions_are_whole_on_a_narrow_terminal(tmp_path: Path) -> None:
    """What is long is folded: nothing is cut off, least of all which version is how."""
    broken = make_tiny_model(tmp_path, version="1").folder / "version.toml"
    broken.write_text("no manifest")
    make_tiny_model(tmp_path, version="2")
    terminal = CliRunner(env={"COLUMNS": "80", "FORCE_COLOR": "1", "NO_COLOR": "1"})
    with RunningServer(model_dir=tmp_path, default_model="tiny", preload="none") as server:
        arguments = ["models", "show", "tiny", "--address", server.address]
        shown = terminal.invoke(make_app(), arguments).stdout
    table = unstyle(shown).split("\n\n")[-1]
    assert "…" not in table
    rows = [row.split()[:3] for row in table.splitlines() if row[:1].isdigit()]
    assert rows == [["1", "error", "model"], ["2", "*", "registered"]]
    assert "fp32*" in table


def test_every_version_is_found_and_shown(shoal: Shoal, tmp_path: Path) -> None:
    """By what it can do itself, with its own state; * marks what the bare name means."""
    add_tiny_variant(make_tiny_model(tmp_path, version="1"))
    make_tiny_model(tmp_path, version="2")
    with RunningServer(model_dir=tmp_path, default_model="tiny", preload="none") as server:
        at = ("--address", server.address)
        shoal("models", "load", "tiny@1", *at)
        found = shoal("models", "find", "--precision", "int8", *at).stdout.splitlines()
        assert [row.split()[:2] for row in found[1:]] == [["tiny@1", "ready"]]
        every = shoal("models", "find", *at).stdout.splitlines()
        assert [row.split()[:3] for row in every[1:]] == [
            ["tiny@1", "ready", "cpu"],
            ["tiny@2", "*", "registered"],
        ]
        shown = shoal("models", "show", "tiny", *at).stdout.splitlines()
        table = shown[shown.index("") + 1 :]
        assert [row.split()[0] for row in table[1:]] == ["1", "2"]
        assert ("ready" in table[1], "int8" in table[1]) == (True, True)
        assert ("*" in table[2].split(), "registered" in table[2]) == (True, True)
        told = json.loads(shoal("models", "show", "tiny", "--json", *at).stdout)["every_version"]
        assert [(each["meant_by_name"], each["is_default"]) for each in told] == [
            (False, False),
            (True, True),
        ]
        one = shoal("models", "show", "tiny@1", *at).stdout
        assert "variants.int8.served" in one
        assert "ready" in one
