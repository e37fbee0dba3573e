"""Scratch folders: private while in use, gone afterwards, cleared when abandoned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal_server.registry.scratch import SCRATCH_PREFIX, clear_abandoned, scratch_folder

# Makes a scratch folder, says so, and waits to be killed.
HOLDER = """
import sys
from pathlib import Path
from shoal_server.registry.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "half-made").touch()
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_is_gone_afterwards(tmp_path: Path) -> None:
    """The folder, which readers ignore, is there for as long as it is entered."""
    with scratch_folder(tmp_path) as folder:
        (folder / "file").touch()
        assert folder.name.startswith(".")
    assert list(tmp_path.iterdir()) == []


def test_is_gone_after_an_interrupt(tmp_path: Path) -> None:
    """Ctrl-C removes it too."""
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path) as folder:
        (folder / "file").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_root_is_made(tmp_path: Path) -> None:
    """A repository need not exist before the first model comes into it."""
    with scratch_folder(tmp_path / "a" / "b") as folder:
        assert folder.is_dir()


def test_two_at_a_time(tmp_path: Path) -> None:
    """One in use is not taken for abandoned by another."""
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        assert first != second
        assert first.is_dir()


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    """While its process lives a folder stays; once that was killed it is removed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        left = tmp_path / holder.stdout.readline().strip()
        clear_abandoned(tmp_path)
        assert (left / "half-made").exists()
        holder.kill()
    clear_abandoned(tmp_path)
    assert not left.exists()


def test_files_and_links_are_left_alone(tmp_path: Path) -> None:
    """Only folders are cleared; what a link points to is not ours."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"{SCRATCH_PREFIX}file").touch()
    (tmp_path / f"{SCRATCH_PREFIX}link").symlink_to(elsewhere)
    clear_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{SCRATCH_PREFIX}file",
        f"{SCRATCH_PREFIX}link",
        "elsewhere",
    ]
