"""Stand-ins for what a preparation talks to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal_server.preparation import environment
from shoal_server.preparation.environment import ExportEnvironment

_ROOT = Path(__file__).resolve().parents[3]
_INTERPRETER = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(_ROOT)!r})
from tests.server.preparation.fake_interpreter import main
main(sys.argv[1:], {{behaviour!r}})
"""


class RecordingProgress:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.details: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def detail(self, text: str) -> None:
        self.details.append(text)

    @contextmanager
    def bars(self) -> Iterator[bool]:
        yield False


def no_environment(folder: Path) -> ExportEnvironment:
    """An export environment that is not there."""
    return ExportEnvironment(folder / "no-export-env")


def fake_environment(folder: Path, behaviour: str = "") -> ExportEnvironment:
    """An export environment that is complete, with `fake_interpreter` for a Python.

    Args:
        folder: Made.
        behaviour: See `fake_interpreter`.
    """
    made = ExportEnvironment(folder / "export-env")
    made.python.parent.mkdir(parents=True)
    made.python.write_text(_INTERPRETER.format(behaviour=behaviour))
    made.python.chmod(0o755)
    (made.folder / environment.MARKER).write_text(environment.requirements_digest())
    return made
