"""The `shoal` command as a whole: what it offers, and how it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

import pytest
import typer

from shoal_server.cli.main import make_app
from shoal_server.settings import Settings

from .conftest import Shoal


def all_commands() -> list[tuple[str, ...]]:
    """The arguments that name each command and each group, the root included."""

    def walk(command: object, name: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield name
        for child, each in getattr(command, "commands", {}).items():
            yield from walk(each, (*name, child))

    return list(walk(typer.main.get_command(make_app()), ()))


def test_the_commands_that_others_rely_on_are_there() -> None:
    """serve, embed, models, health, config: the names are part of the product."""
    assert {("serve",), ("embed",), ("models",), ("health",), ("config",)} <= set(all_commands())


@pytest.mark.parametrize("command", all_commands(), ids=lambda command: " ".join(command) or "-")
def test_every_command_explains_itself(shoal: Shoal, command: tuple[str, ...]) -> None:
    """`--help` exits 0, and says what the command does."""
    result = shoal(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout
    assert len(result.stdout.strip().splitlines()) > 5


@pytest.mark.parametrize("command", ["serve", "config"])
def test_every_setting_has_a_flag(shoal: Shoal, command: str) -> None:
    """The help names each flag, its variable and, for switches, how to turn it off."""
    words = set(re.split(r"[\s/,\[\];│]+", shoal(command, "--help").stdout))
    for name, field in Settings.model_fields.items():
        flag = name.replace("_", "-")
        assert f"--{flag}" in words
        assert f"SHOAL_{name.upper()}" in words
        assert field.annotation is not bool or f"--no-{flag}" in words


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--grpc-prot", "1"),
        ("serve", "surplus"),
        ("serve", "--grpc-port", "http"),
        ("serve", "--grpc-port", "65536"),
        ("serve", "--config-file", "/nowhere/shoal.toml"),
        ("config", "--device", "gpu"),
        ("health", "--timeout", "0"),
        ("no-such-command",),
    ],
)
def test_wrong_usage_exits_2(shoal: Shoal, arguments: tuple[str, ...]) -> None:
    """Unknown flags and commands, surplus arguments, values out of their limits."""
    result = shoal(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


def test_version(shoal: Shoal) -> None:
    """`--version` tells the version of the distribution that is installed."""
    result = shoal("--version")
    assert (result.exit_code, result.stdout) == (0, f"shoal {metadata.version('shoal-server')}\n")


def test_the_server_does_not_start_with_two_runtimes(
    shoal: Shoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conflict of installed runtimes is told in one line, before anything of theirs is loaded."""
    monkeypatch.setattr("shoal_server.cli.main.runtime_conflict", lambda: "two are installed")
    result = shoal("serve")
    assert (result.exit_code, result.stderr) == (1, "shoal: two are installed\n")
