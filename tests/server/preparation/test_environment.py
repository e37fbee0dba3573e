"""The export environment: complete or not there, and never somebody else's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from shoal_server.preparation import commands
from shoal_server.preparation.commands import CommandFailed
from shoal_server.preparation.environment import ExportEnvironment, default_export_env
from shoal_server.preparation.errors import EnvironmentFailed
from shoal_server.preparation.progress import Progress

from .fakes import RecordingProgress

ROOT = Path(__file__).resolve().parents[3]


class FakeCommands:
    """Plays venv and pip.

    Attributes:
        ran: What was run, as one line each.
        failure: Raised by pip.
    """

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failure: BaseException | None = None

    def run(
        self,
        command: Sequence[str],
        progress: Progress,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.ran.append(" ".join(command))
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir()
            python.touch()
        elif self.failure:
            raise self.failure


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    fake = FakeCommands()
    monkeypatch.setattr(commands, "run", fake.run)
    return fake


@pytest.fixture
def environment(tmp_path: Path) -> ExportEnvironment:
    return ExportEnvironment(tmp_path / "env")


def test_is_made_once(environment: ExportEnvironment, fake: FakeCommands) -> None:
    """Making installs the pinned requirements; once complete it is not made again."""
    assert not environment.is_complete()
    environment.make(RecordingProgress())
    assert environment.is_complete()
    environment.make(RecordingProgress())
    assert len(fake.ran) == 2
    assert "pip install" in fake.ran[1]
    assert fake.ran[1].endswith("export-requirements.txt")


@pytest.mark.parametrize("failure", [CommandFailed("no network"), KeyboardInterrupt()])
def test_an_interrupted_one_is_not_kept(
    environment: ExportEnvironment, fake: FakeCommands, failure: BaseException
) -> None:
    """Failure or Ctrl-C while pip runs leaves no folder, and the next try succeeds."""
    fake.failure = failure
    with pytest.raises((EnvironmentFailed, KeyboardInterrupt)):
        environment.make(RecordingProgress())
    assert not environment.folder.exists()
    fake.failure = None
    environment.make(RecordingProgress())
    assert environment.is_complete()


def test_a_killed_one_is_made_anew(environment: ExportEnvironment, fake: FakeCommands) -> None:
    """What a killed process left is not complete and is cleared away."""
    environment.make(RecordingProgress())
    (environment.folder / ".shoal-export-env").write_text("")
    (environment.folder / "half-installed").touch()
    assert not environment.is_complete()
    environment.make(RecordingProgress())
    assert environment.is_complete()
    assert not (environment.folder / "half-installed").exists()


def test_other_requirements_are_not_complete(
    environment: ExportEnvironment, fake: FakeCommands
) -> None:
    """An environment made for other pins does not count."""
    environment.make(RecordingProgress())
    (environment.folder / ".shoal-export-env").write_text("0" * 64)
    assert not environment.is_complete()


def test_somebody_elses_folder_is_left_alone(
    environment: ExportEnvironment, fake: FakeCommands
) -> None:
    """Neither making nor removing touches a folder that we did not make."""
    environment.folder.mkdir()
    thesis = environment.folder / "thesis.txt"
    thesis.write_text("three years")
    for act in (environment.make, environment.remove):
        with pytest.raises(EnvironmentFailed, match="SHOAL_EXPORT_ENV"):
            act(RecordingProgress())
    assert thesis.read_text() == "three years"


def test_is_removed(environment: ExportEnvironment, fake: FakeCommands) -> None:
    """Removing leaves nothing; removing what is not there is no error."""
    environment.make(RecordingProgress())
    environment.remove(RecordingProgress())
    assert not environment.folder.exists()
    environment.remove(RecordingProgress())


def test_failure_tells_why(environment: ExportEnvironment, fake: FakeCommands) -> None:
    """What pip said is in the error."""
    fake.failure = CommandFailed("ERROR: No matching distribution found for torch")
    with pytest.raises(EnvironmentFailed, match="No matching distribution"):
        environment.make(RecordingProgress())


def test_default_place_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is put into the working folder unless somebody says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_export_env() == tmp_path / "shoal" / "export-env"


@pytest.mark.parametrize("name", ["server/pyproject.toml", "constraints.txt"])
def test_the_servers_requirements_have_none_of_it(name: str) -> None:
    """The server's own environment names neither torch nor transformers."""
    text = (ROOT / name).read_text().lower()
    assert "torch" not in text
    assert "transformers" not in text
