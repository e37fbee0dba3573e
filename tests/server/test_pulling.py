"""Preparing in another process, seen from the server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal_server.errors import UpdateFailed
from shoal_server.pulling import NewerPull
from tests.server.api.calls import eventually
from tests.tiny_model import make_tiny_model


async def test_what_it_says_is_the_reason(tmp_path: Path) -> None:
    """Its last line, without the command's name."""
    make_tiny_model(tmp_path, "local")
    with pytest.raises(UpdateFailed, match=r"^the model.toml of local names no source$"):
        await NewerPull(tmp_path, timeout_s=60)("local", never)


async def test_it_is_bounded_in_time(tmp_path: Path) -> None:
    """It is ended then, with all that it started."""
    make_tiny_model(tmp_path, "local")
    before = children()
    with pytest.raises(UpdateFailed, match=r"longer than 0\.01 s$"):
        await NewerPull(tmp_path, timeout_s=0.01)("local", never)
    assert children() <= before


async def test_a_caller_that_leaves_while_it_is_started_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread starts it all the same: nobody else would know of it."""
    starting, left = threading.Event(), threading.Event()

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            starting.set()
            left.wait()
            super().__init__(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    program = write_program(tmp_path / "program", "exec sleep 600")
    monkeypatch.setattr(sys, "executable", str(program))
    before = children()
    pulling = asyncio.create_task(NewerPull(tmp_path, timeout_s=60)("local", never))
    await asyncio.to_thread(starting.wait)
    pulling.cancel()
    await asyncio.sleep(0)
    left.set()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    assert children() <= before


async def test_what_it_leaves_behind_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as when it was killed for want of memory, and what it started was not."""
    program = write_program(tmp_path / "program", "sleep 600 2>/dev/null & echo $! >&2; exit 3")
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(UpdateFailed) as raised:
        await NewerPull(tmp_path, timeout_s=60)("local", never)
    left_behind = int(raised.value.message)
    await asyncio.to_thread(eventually, lambda: not is_running(left_behind), "it is ended")


async def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other reason for which it can not be prepared."""

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shoal_server.pulling.TemporaryFile", refuse)
    with pytest.raises(UpdateFailed, match="can not be started: No space left on device"):
        await NewerPull(tmp_path, timeout_s=60)("local", never)


@pytest.mark.parametrize(
    ("says", "is_told"), [("preparing local@2", True), ("local@1: newest", False)]
)
async def test_it_tells_when_there_is_something_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, is_told: bool
) -> None:
    """While that is being prepared, and not while it is looked for."""
    begun = asyncio.Event()
    program = write_program(tmp_path / "program", f"echo {says}; cat {tmp_path}/go_on; echo done")
    os.mkfifo(tmp_path / "go_on")
    monkeypatch.setattr(sys, "executable", str(program))
    pulling = asyncio.create_task(NewerPull(tmp_path, timeout_s=60)("local", begun.set))
    if is_told:
        await begun.wait()
    assert not pulling.done()
    await asyncio.to_thread((tmp_path / "go_on").write_text, "")
    await pulling
    assert begun.is_set() == is_told


def never() -> None:
    """Nothing is newer in these tests."""
    raise AssertionError


def write_program(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def children() -> set[psutil.Process]:
    """Those of this process; another test may have left some, such as multiprocessing's tracker."""
    return set(psutil.Process().children())


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
