"""Child processes: what they say is passed on, and none outlives its caller."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest

from shoal_server.preparation import commands
from shoal_server.preparation.commands import CommandFailed, run

from .fakes import RecordingProgress


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_are_details() -> None:
    """Every line that a program prints, to either stream, is shown."""
    progress = RecordingProgress()
    run(python("import sys; print('one'); sys.stdout.flush(); sys.exit(print('two'))"), progress)
    assert progress.details == ["one", "two"]


def test_variables_are_added() -> None:
    """Variables come beside ours, not in their place."""
    progress = RecordingProgress()
    code = "import os; print(os.environ['SHOAL_TEST'], 'PATH' in os.environ)"
    run(python(code), progress, {"SHOAL_TEST": "yes"})
    assert progress.details == ["yes True"]


def test_failure_carries_the_end_of_the_output() -> None:
    """The error shows what was printed last, not all of it."""
    with pytest.raises(CommandFailed) as failed:
        run(python("print(*range(100), sep='\\n'); raise SystemExit('why')"), RecordingProgress())
    lines = str(failed.value).splitlines()
    assert (lines[-1], len(lines)) == ("why", 10)


def test_full_disk_is_an_os_error() -> None:
    """A program that says the disk is full is told from one that fails otherwise."""
    code = f"raise OSError({errno.ENOSPC}, {os.strerror(errno.ENOSPC)!r})"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as failed:
        run(python(code), RecordingProgress())
    assert failed.value.errno == errno.ENOSPC


def test_an_interrupt_ends_all_that_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a program runs ends it and its own children, obliging or not."""
    monkeypatch.setattr(commands, "_TERMINATE_S", 0.1)
    code = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(os.getpid(), child.pid, flush=True)
signal.pause()
"""

    class Interrupting(RecordingProgress):
        def detail(self, text: str) -> None:
            super().detail(text)
            raise KeyboardInterrupt

    progress = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run(python(code), progress)
    started = [int(pid) for pid in progress.details[0].split()]
    left = [psutil.Process(pid) for pid in started if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs([p for p in left if p.status() != psutil.STATUS_ZOMBIE], 5)
    assert alive == []


def test_an_interrupt_while_starting_leaves_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is known before the interrupt is let through, and so it is ended."""
    started: list[subprocess.Popen[str]] = []

    class InterruptedPopen(subprocess.Popen[str]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)
    with pytest.raises(KeyboardInterrupt):
        run(python("import signal; signal.pause()"), RecordingProgress())
    (process,) = started
    assert process.returncode is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
