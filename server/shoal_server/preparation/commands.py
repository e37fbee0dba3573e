"""Running other programs so that none outlives us, whatever ends us."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from shoal_server.preparation.progress import Progress

_KEPT_LINES = 10
_DISK_FULL = os.strerror(errno.ENOSPC)
_TERMINATE_S = 5.0


class CommandFailed(Exception):
    """A program ended with an error; the text is the end of what it printed."""


def run(
    command: Sequence[str], progress: Progress, variables: Mapping[str, str] | None = None
) -> None:
    """Run a program to its end, its lines shown as details of the current step.

    The program leads a session of its own: an interrupt from the terminal reaches us
    only, and on leaving, for whatever reason, all that it started is ended.

    Args:
        command: Program and arguments.
        progress: Gets every line that it prints.
        variables: Environment variables set beside ours.

    Raises:
        CommandFailed: Its exit status was not 0.
        OSError: It can not be started, or it found the disk full.
    """
    last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
    # An interrupt in the middle of starting it would leave a program that nobody knows.
    held = _HeldSignals()
    try:
        process = subprocess.Popen(  # noqa: S603 - the callers' own commands, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(variables or {})},
            start_new_session=True,
            close_fds=False,  # it shares our file locks, which Python alone marks as inheritable
        )
    except BaseException:
        held.release()
        raise
    with process:
        try:
            held.release()
            assert process.stdout is not None  # noqa: S101 - asked for above
            for line in process.stdout:
                if text := line.strip():
                    last_lines.append(text)
                    progress.detail(text)
            status = process.wait()
        finally:
            _end_session(process)
    if status == 0:
        return
    if any(_DISK_FULL in line for line in last_lines):
        raise OSError(errno.ENOSPC, _DISK_FULL)
    raise CommandFailed("\n".join(last_lines) or f"exit status {status}")


class _HeldSignals:
    """Keeps what would interrupt the main thread until `release`, then lets it happen."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._keep)

    def release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for came in self._came:
            signal.raise_signal(came)

    def _keep(self, number: int, _: FrameType | None) -> None:
        self._came.append(number)


def _end_session(process: subprocess.Popen[str]) -> None:
    _signal_session(process, signal.SIGTERM)
    try:
        process.wait(_TERMINATE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_session(process, signal.SIGKILL)


def _signal_session(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
