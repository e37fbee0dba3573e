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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from shoal_server.errors import UpdateFailed

_SAID_BYTES = 2000
_TERMINATE_S = 5.0


@dataclass(frozen=True, slots=True)
class NewerPull:
    """Runs `shoal models pull NAME --if-newer`."""

    model_dir: Path
    timeout_s: float

    async def __call__(self, name: str) -> None:
        """Prepare what is newer of a model, if anything is.

        A caller that leaves ends it; nothing half-done stays in the repository.

        Raises:
            UpdateFailed: It could not be prepared; says why.
        """
        loop = asyncio.get_running_loop()
        # A thread of its own, for it may take an hour. Not asyncio's way to start a process:
        # uvloop runs Python between fork and exec, which a process of many threads must not.
        waiter = ThreadPoolExecutor(1, thread_name_prefix="shoal-pull")
        with TemporaryFile() as said:
            try:
                process = await loop.run_in_executor(waiter, self._start, name, said)
            except OSError as error:
                raise UpdateFailed(f"preparing can not be started: {error.strerror}") from error
            try:
                async with asyncio.timeout(self.timeout_s):
                    status = await loop.run_in_executor(waiter, process.wait)
            except TimeoutError:
                raise UpdateFailed(f"preparing took longer than {self.timeout_s:g} s") from None
            finally:
                await _end(process, partial(loop.run_in_executor, waiter, process.wait))
                waiter.shutdown(wait=False)
            if status != 0:
                raise UpdateFailed(_last_line(said) or f"preparing ended with status {status}")

    def _start(self, name: str, said: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own command, no shell
            [
                *(sys.executable, "-m", "shoal_server", "models", "pull", name, "--if-newer"),
                *("--model-dir", str(self.model_dir)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )


def _last_line(said: IO[bytes]) -> str:
    """The last that a process said of itself, without the command's name."""
    size_bytes = said.seek(0, os.SEEK_END)
    said.seek(max(0, size_bytes - _SAID_BYTES))
    lines = said.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "").removeprefix(
        "shoal: "
    )


async def _end(process: subprocess.Popen[bytes], ended: partial[asyncio.Future[int]]) -> None:
    """End it, and all that it started, if it goes on."""
    if process.returncode is not None:
        return
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(_TERMINATE_S):
            await ended()
    except TimeoutError:
        pass
    finally:
        _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
