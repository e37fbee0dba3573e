"""Prepares what is newer of a model, in a process of its own.

Preparing takes libraries, memory and minutes that a server has no use for, and it may
fail in ways that must not be the server's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from shoal_server.errors import UpdateFailed

PREPARING = "preparing "
"""What the command says first on stdout when there is something newer."""

_SAID_BYTES = 2000
# Longer than it waits itself for what it started.
_TERMINATE_S = 10.0


@dataclass(frozen=True, slots=True)
class NewerPull:
    """Runs `shoal models pull NAME --if-newer`."""

    model_dir: Path
    timeout_s: float

    async def __call__(self, name: str, began: Callable[[], object]) -> None:
        """Prepare what is newer of a model, if anything is.

        A caller that leaves ends it; nothing half-done stays in the repository.

        Args:
            name: Of the model.
            began: Called when there is something newer, which is prepared from then on.

        Raises:
            UpdateFailed: It could not be prepared; says why.
        """
        try:
            with TemporaryFile() as said, _listening(began) as tells:
                status = await self._run(name, tells, said)
                if status != 0:
                    raise UpdateFailed(_last_line(said) or f"preparing ended with status {status}")
        except OSError as error:
            raise UpdateFailed(f"preparing can not be started: {error.strerror}") from error

    async def _run(self, name: str, tells: int, said: IO[bytes]) -> int:
        command = [
            *(sys.executable, "-m", "shoal_server", "models", "pull", name, "--if-newer"),
            *("--model-dir", str(self.model_dir)),
        ]
        process = _Process()
        # A thread of its own, for it may take an hour. Not asyncio's way to start a process: by
        # its source (0.23, handles/process.pyx) uvloop calls PyOS_AfterFork_Child in the child
        # before exec; subprocess calls nothing of Python's there.
        thread = ThreadPoolExecutor(1, thread_name_prefix="shoal-pull")
        run = process.run
        ended = asyncio.get_running_loop().run_in_executor(thread, run, command, tells, said)
        thread.shutdown(wait=False)
        try:
            async with asyncio.timeout(self.timeout_s):
                return await asyncio.shield(ended)
        except TimeoutError:
            raise UpdateFailed(f"preparing took longer than {self.timeout_s:g} s") from None
        finally:
            if not ended.done():
                process.send(signal.SIGTERM)
                try:
                    await asyncio.wait({ended}, timeout=_TERMINATE_S)
                finally:
                    process.send(signal.SIGKILL)


class _Process:
    """A process that a thread starts and waits for, with all that it starts itself."""

    def __init__(self) -> None:
        # Guards what follows: the thread starts the process, the event loop ends it.
        self._lock = threading.Lock()
        self._group = 0
        self._sent: signal.Signals | None = None

    def run(self, command: Sequence[str], tells: int, said: IO[bytes]) -> int:
        """Start it, wait for its end, and end what it left behind; in a thread.

        Args:
            command: Program and arguments.
            tells: A file that gets what it writes on stdout; closed when it has it.
            said: Gets what it writes on stderr.

        Returns:
            Its exit status.

        Raises:
            OSError: It can not be started.
        """
        try:
            process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=tells,
                stderr=said,
                start_new_session=True,
            )
        finally:
            os.close(tells)
        with self._lock:
            self._group = process.pid
            if self._sent is not None:  # while it was being started
                _signal(self._group, self._sent)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            # Before it is reaped: until then the number is no other process's.
            _signal(self._group, signal.SIGKILL)
            self._group = 0
        return process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and all that it started, once it is there; from any thread."""
        with self._lock:
            self._sent = number
            if self._group:
                _signal(self._group, number)


@contextmanager
def _listening(began: Callable[[], object]) -> Iterator[int]:
    """A file for a process to write on, which closes it; calls when `PREPARING` is first on it."""
    loop = asyncio.get_running_loop()
    told, tells = os.pipe()

    def listen() -> None:
        loop.remove_reader(told)
        if os.read(told, _SAID_BYTES).startswith(PREPARING.encode()):
            began()

    loop.add_reader(told, listen)
    try:
        yield tells
    finally:
        loop.remove_reader(told)
        os.close(told)


def _last_line(said: IO[bytes]) -> str:
    """The last that a process said of itself, without the command's name."""
    size_bytes = said.seek(0, os.SEEK_END)
    said.seek(max(0, size_bytes - _SAID_BYTES))
    lines = said.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "").removeprefix(
        "shoal: "
    )


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
