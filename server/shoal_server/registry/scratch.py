"""Folders in which files are made or thrown away, out of the readers' sight.

They lie inside the model repository, because only a rename within one file system
is atomic. The kernel drops a file lock when its owners die, however they die, so a
folder whose lock can be taken was abandoned; a process id would mean nothing to
another container. Child processes inherit the lock: one that outlives its killed
parent, and still writes, keeps its folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH_PREFIX = ".staging-"


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """An empty folder inside `root`, removed with all it holds on leaving.

    Folders that killed processes left behind are removed first.

    Args:
        root: The model repository; made when it is missing.

    Raises:
        OSError: The disk refuses.
    """
    root.mkdir(parents=True, exist_ok=True)
    clear_abandoned(root)
    folder, lock = _make_locked(root)
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder)
        finally:
            os.close(lock)


def clear_abandoned(root: Path) -> None:
    """Remove the scratch folders whose owners are gone.

    Raises:
        OSError: The disk refuses.
    """
    for folder in root.glob(SCRATCH_PREFIX + "*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # its owner removed it just now, or it is no folder of ours
        try:
            if _try_lock(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _make_locked(root: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=root))
        # Until it is locked another process may take it for abandoned and remove it.
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        if _try_lock(lock) and folder.exists():
            os.set_inheritable(lock, True)
            return folder, lock
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
