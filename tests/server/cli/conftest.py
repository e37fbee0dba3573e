"""The `shoal` command, run in this process."""

from __future__ import annotations

import os
from typing import Protocol

import pytest
from typer.testing import CliRunner

from shoal_server.cli.main import make_app


class Result(Protocol):
    """How a command ended (typer's own type has no public name)."""

    exit_code: int

    @property
    def stdout(self) -> str: ...

    @property
    def stderr(self) -> str: ...


class Shoal(Protocol):
    """Runs `shoal` with arguments."""

    def __call__(self, *arguments: str) -> Result: ...


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch) -> Shoal:
    """Runs the command on a wide screen, without variables of the developer's."""
    for name in [name for name in os.environ if name.startswith("SHOAL_")]:
        monkeypatch.delenv(name)
    app, runner = make_app(), CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1"})

    def run(*arguments: str) -> Result:
        return runner.invoke(app, list(arguments))

    return run
