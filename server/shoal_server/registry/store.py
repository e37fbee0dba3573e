"""What a server remembers of its models over restarts: SQLite beside the repository.

Records by kind and key, each a JSON object; who owns a kind gives it its meaning. A
thread of its own does the reading and writing, one transaction after the other, so
the event loop never waits for a disk.

A change that `write` returned from survives the end of the process at any moment, and,
as far as the disk keeps what it was told to (WAL with synchronous=FULL), of the machine.

The first server on a repository owns the file, by a lock that the kernel drops when its
process ends, however it ends. Others, and servers that can not write there, start from
what is written and keep their own changes in memory.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from shoal_server.errors import NotPersisted

log = structlog.get_logger(__name__)

STATE_FILE = ".shoal.db"
SCHEMA_VERSION = 1

Record = Mapping[str, object]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID
"""
# Another connection, such as somebody's sqlite3, may hold the file for a moment.
_BUSY_S = 5.0
_IN_MEMORY = "changes are kept in memory only"


class StoreUnreadable(Exception):
    """The file is there and can not be understood; the message says why and what to do."""


class _NotOurs(Exception):
    """The file can not be written by this process; the message says why."""


@dataclass(frozen=True, slots=True)
class Change:
    """One record to write; without a value it is removed."""

    kind: str
    key: str
    value: Record | None


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    connection: sqlite3.Connection
    lock: int
    identity: tuple[int, int] | None
    """Of the file that was opened: another one may be put in its place."""


class RecordStore:
    """The records of one repository. Its methods belong to the event loop's thread."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet; see `open`."""
        self._path = path
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="shoal-store")
        self._file: _File | None = None
        self._read: dict[str, dict[str, Record]] = {}
        self.problem = ""
        """Why changes are kept in memory only; empty: they are on disk."""

    @classmethod
    async def open(cls, path: Path) -> RecordStore:
        """Own the file at `path` if that can be had, and read what it holds.

        Raises:
            StoreUnreadable: It is damaged, or of a later version of Shoal.
        """
        store = cls(path)
        try:
            await asyncio.get_running_loop().run_in_executor(store._executor, store._open)
        except BaseException:
            store._executor.shutdown(wait=False)
            raise
        if store.problem:
            log.warning("state_not_persistent", file=str(path), reason=store.problem)
        return store

    def records(self, kind: str) -> Mapping[str, Record]:
        """The records of a kind, by key, as they were when the store was opened."""
        return self._read.get(kind, {})

    async def write(self, *changes: Change) -> None:
        """Write all of `changes` or none; returns when they are durable.

        Cancelling the caller does not undo a write that was begun.

        Raises:
            NotPersisted: The disk refused; nothing was changed.
        """
        if self._file is None or not changes:
            return
        rows = [
            (each.kind, each.key, None if each.value is None else json.dumps(each.value))
            for each in changes
        ]
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._executor, _commit, self._file, rows
            )
        except sqlite3.Error as error:
            log.error("state_not_written", file=str(self._path), error=str(error))
            raise NotPersisted(f"the change could not be written to disk: {error}") from error

    async def close(self) -> None:
        """Finish what is being written and give the file up. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, _close, file)
        self._executor.shutdown(wait=False)

    def _open(self) -> None:
        """In the store's thread."""
        try:
            lock = self._lock()
        except (_NotOurs, OSError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            self.problem = f"{reason}; {_IN_MEMORY}"
            self._read = self._look()
            return
        try:
            connection = _connect(self._path)
            try:
                self._read = _all_records(connection)
                identity = _identity(self._path)
            except BaseException:
                connection.close()
                raise
        except sqlite3.OperationalError as error:
            # Not what is in the file, but where it is: no space, or a mount that is read-only.
            os.close(lock)
            self.problem = f"{error}; {_IN_MEMORY}"
            self._read = self._look()
            return
        except sqlite3.Error as error:
            os.close(lock)
            raise self._unreadable(error) from error
        self._file = _File(self._path, connection, lock, identity)

    def _lock(self) -> int:
        # Not the file itself: where flock and POSIX locks are one, SQLite would meet ours.
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise _NotOurs("another server has the file open") from None
        except OSError:
            os.close(lock)
            raise
        if self._path.exists() and not os.access(self._path, os.W_OK):
            os.close(lock)
            raise _NotOurs("the file is read-only")
        return lock

    def _look(self) -> dict[str, dict[str, Record]]:
        """Read without writing: first beside its owner, then as a file that nobody changes."""
        if not self._path.exists():
            return {}
        error: sqlite3.Error | None = None
        for how in ("mode=ro", "mode=ro&immutable=1"):
            connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?{how}", uri=True)
            try:
                return _all_records(connection)
            except sqlite3.Error as failed:
                error = failed
            finally:
                connection.close()
        assert error is not None  # noqa: S101
        raise self._unreadable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> StoreUnreadable:
        return StoreUnreadable(
            f"{self._path} can not be read: {error}; move it away to start without the aliases, "
            "pins, tags, deprecations and statistics that it holds"
        )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _all_records(connection: sqlite3.Connection) -> dict[str, dict[str, Record]]:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:  # made, and left before its first transaction
        return {}
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(
            f"its schema is {version}, this version of Shoal knows {SCHEMA_VERSION}"
        )
    if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise sqlite3.DatabaseError(found)
    records: dict[str, dict[str, Record]] = {}
    for kind, key, value in connection.execute("SELECT kind, key, value FROM records"):
        try:
            records.setdefault(kind, {})[key] = json.loads(value)
        except ValueError as error:
            raise sqlite3.DatabaseError(f"{kind} {key!r} is not JSON") from error
    return records


def _commit(file: _File, rows: list[tuple[str, str, str | None]]) -> None:
    # Into a file that is no longer there SQLite writes without a word.
    if _identity(file.path) != file.identity:
        raise sqlite3.OperationalError("the state file was removed or replaced; restart the server")
    connection = file.connection
    connection.execute("BEGIN IMMEDIATE")
    try:
        for kind, key, value in rows:
            if value is None:
                connection.execute("DELETE FROM records WHERE kind = ? AND key = ?", (kind, key))
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (kind, key, value)
                )
        connection.execute("COMMIT")
    except sqlite3.Error:
        # Some failures have ended the transaction already.
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _close(file: _File) -> None:
    try:
        file.connection.close()
    finally:
        os.close(file.lock)
