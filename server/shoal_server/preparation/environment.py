"""The export environment: a virtual environment with PyTorch, made when it is needed.

It is complete when a marker holds the digest of the pinned requirements; an outdated
one, or one whose making was killed, is made anew, because what pip left half-way looks
installed. The server's own environment never sees any of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from shoal_server.preparation import commands
from shoal_server.preparation.errors import EnvironmentFailed
from shoal_server.preparation.progress import Progress

_REQUIREMENTS = Path(__file__).with_name("export-requirements.txt")
MARKER = ".shoal-export-env"
# Wheels only: a source package would run code of its own. Compiling what is never
# imported takes half of the time, so Python compiles what it imports.
_PIP_OPTIONS = (
    "--disable-pip-version-check",
    "--no-compile",
    "--no-input",
    "--no-warn-script-location",
    "--only-binary=:all:",
    "--progress-bar=off",
)
# Nothing is fetched, and nothing runs on a GPU: the reference is the CPU's.
_VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}


def default_export_env() -> Path:
    """Where the export environment is when nobody says: in the user's cache."""
    return platformdirs.user_cache_path("shoal") / "export-env"


class ExportEnvironment:
    """A folder that holds the export environment, or will.

    Args:
        folder: Its place. A folder that holds something else is left alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    def is_complete(self) -> bool:
        """Whether everything that the requirements name was installed."""
        try:
            return self._marker.read_text() == requirements_digest() and self.python.exists()
        except OSError:
            return False

    def make(self, progress: Progress) -> None:
        """Make the environment unless it is complete. Waits for another process that does.

        Raises:
            EnvironmentFailed: It can not be made; the text tells why.
        """
        if self.is_complete():
            return
        try:
            with self._locked(progress):
                if not self.is_complete():
                    self._build(progress)
        except (commands.CommandFailed, OSError) as error:
            raise EnvironmentFailed(
                f"the export environment {self.folder} could not be made: {error}"
            ) from error

    def remove(self, progress: Progress) -> None:
        """Remove the environment if it is there.

        Raises:
            EnvironmentFailed: The folder holds something else.
            OSError: The disk refuses.
        """
        if self.folder.is_dir():
            progress.step(f"removing the export environment {self.folder}")
            with self._locked(progress):
                self._discard()

    def pip_install(self, arguments: Sequence[str], progress: Progress) -> None:
        """Run the environment's `pip install`.

        Raises:
            CommandFailed: pip refused; the text is the end of what it printed.
        """
        command = [str(self.python), "-I", "-m", "pip", "install", *_PIP_OPTIONS, *arguments]
        commands.run(command, progress)

    def run(self, script: Path, arguments: Sequence[str], progress: Progress) -> None:
        """Run a script with the environment's interpreter, offline and on the CPU.

        Raises:
            CommandFailed: It failed; the text is the end of what it printed.
        """
        commands.run([str(self.python), "-I", str(script), *arguments], progress, _VARIABLES)

    @property
    def _marker(self) -> Path:
        return self.folder / MARKER

    def _build(self, progress: Progress) -> None:
        progress.step(f"making the export environment in {self.folder} (PyTorch; once)")
        self._clear()
        try:
            commands.run([sys.executable, "-I", "-m", "venv", str(self.folder)], progress)
            self.pip_install(["--requirement", str(_REQUIREMENTS)], progress)
            self._marker.write_text(requirements_digest())
        except BaseException:
            self._discard()  # nobody wants a gigabyte that is of no use
            raise

    def _clear(self) -> None:
        """Empty the folder, but for the marker that says it is ours to empty."""
        if not self._marker.exists() and any(self.folder.iterdir()):
            raise EnvironmentFailed(
                f"{self.folder} holds something else than an export environment; "
                "name another folder with SHOAL_EXPORT_ENV"
            )
        self._marker.write_text("")
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != self._marker:
                entry.unlink()

    def _discard(self) -> None:
        self._clear()
        self._marker.unlink()
        self.folder.rmdir()

    @contextmanager
    def _locked(self, progress: Progress) -> Iterator[None]:
        # The lock is on the folder itself, which outlives `_clear`. pip inherits it: one
        # that outlives a killed parent holds it until it is done.
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.set_inheritable(descriptor, True)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.step(f"waiting for another process that works in {self.folder}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def requirements_digest() -> str:
    """What the marker of a complete environment holds."""
    return hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()
