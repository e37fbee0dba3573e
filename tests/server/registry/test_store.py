"""What the store acknowledged is there, whatever happens to its process."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from shoal_server.errors import NotPersisted
from shoal_server.registry.store import Change, RecordStore, StoreUnreadable

KILLS = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".shoal.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[RecordStore]:
    store = await RecordStore.open(path)
    yield store
    await store.close()


async def reopened(path: Path, kind: str) -> dict[str, Any]:
    """The records of a kind as a server that starts now reads them."""
    store = await RecordStore.open(path)
    try:
        assert store.problem == ""
        return dict(store.records(kind))
    finally:
        await store.close()


def damage(path: Path) -> None:
    """Let the file be none of SQLite's."""
    path.write_bytes(b"not a database" * 1000)


def replace(path: Path) -> None:
    """Put an empty file in the place of the one that is open."""
    path.unlink()
    path.touch()


def of_schema(path: Path, version: int) -> bytes:
    """The file, as if a Shoal of that schema had written it."""
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    return content(path)


def content(path: Path) -> bytes:
    """All of the file."""
    return path.read_bytes()


async def test_records_outlast_the_store(store: RecordStore, path: Path) -> None:
    """What was written is there, what was removed is not, and kinds do not mix."""
    await store.write(Change("pin", "tiny", {"version": "1"}), Change("alias", "tiny", {"n": 2}))
    await store.write(Change("pin", "other", {"version": "3"}), Change("pin", "tiny", None))
    await store.close()
    assert await reopened(path, "pin") == {"other": {"version": "3"}}
    assert await reopened(path, "alias") == {"tiny": {"n": 2}}


async def test_changes_are_written_together_or_not_at_all(store: RecordStore, path: Path) -> None:
    """A transaction that the disk refuses half-way leaves nothing, and the next one works."""
    await store.write(Change("pin", "tiny", {"version": "1"}))
    with sqlite3.connect(path) as other:
        other.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON records WHEN NEW.key = 'refused' "
            "BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
    other.close()
    with pytest.raises(NotPersisted, match="no room"):
        await store.write(Change("pin", "tiny", None), Change("pin", "refused", {"version": "1"}))
    await store.write(Change("pin", "later", {"version": "2"}))
    await store.close()
    assert await reopened(path, "pin") == {"tiny": {"version": "1"}, "later": {"version": "2"}}


@pytest.mark.parametrize("takes_away", [Path.unlink, replace])
async def test_a_file_that_was_taken_away_is_not_written_to(
    store: RecordStore, path: Path, takes_away: Callable[[Path], None]
) -> None:
    """A change that nobody would find again is not acknowledged."""
    takes_away(path)
    with pytest.raises(NotPersisted, match="removed or replaced"):
        await store.write(Change("pin", "tiny", {"version": "1"}))


async def test_a_second_server_reads_and_writes_nothing(store: RecordStore, path: Path) -> None:
    """It starts from what the first one wrote, says so, and leaves the file alone."""
    await store.write(Change("pin", "tiny", {"version": "1"}))
    second = await RecordStore.open(path)
    assert "another server" in second.problem
    assert second.records("pin") == {"tiny": {"version": "1"}}
    await second.write(Change("pin", "tiny", {"version": "2"}))
    await second.close()
    await store.write(Change("pin", "more", {"version": "1"}))
    await store.close()
    assert await reopened(path, "pin") == {"tiny": {"version": "1"}, "more": {"version": "1"}}


async def test_where_nothing_can_be_written_changes_stay_in_memory(tmp_path: Path) -> None:
    """A server starts and works there; it says what it can not do."""
    (tmp_path / "file").touch()
    store = await RecordStore.open(tmp_path / "file" / ".shoal.db")
    assert "memory only" in store.problem
    await store.write(Change("pin", "tiny", {"version": "1"}))
    await store.close()


async def test_a_damaged_file_is_not_taken_for_an_empty_one(path: Path) -> None:
    """Aliases that vanish without a word would be answers of NOT_FOUND to their callers."""
    damage(path)
    with pytest.raises(StoreUnreadable, match="move it away"):
        await RecordStore.open(path)


async def test_a_file_of_a_later_version_is_left_alone(store: RecordStore, path: Path) -> None:
    """Going back to an older Shoal destroys nothing."""
    await store.close()
    before = of_schema(path, 99)
    with pytest.raises(StoreUnreadable, match="schema is 99"):
        await RecordStore.open(path)
    assert content(path) == before


# Writes pairs of equal numbers, and says each when it is acknowledged. The ballast makes
# SQLite move its log into the file again and again.
_WRITER = """
import asyncio, sys
from pathlib import Path
from typing import Any
from shoal_server.registry.store import Change, RecordStore

async def main():
    store = await RecordStore.open(Path(sys.argv[1]))
    assert store.problem == "", store.problem
    number = store.records("pair").get("left", {"n": 0})["n"]
    while True:
        number += 1
        value = {"n": number, "ballast": "x" * 20_000}
        await store.write(Change("pair", "left", value), Change("pair", "right", value))
        print(number, flush=True)

asyncio.run(main())
"""


def killed_writer(path: Path, after: int) -> list[int]:
    """What a process acknowledged that was killed after so many writes, or a few more."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        lines = list(islice(writer.stdout, after))
        writer.kill()
        # What was said before the signal arrived counts too.
        lines += writer.stdout.readlines()
    return [int(line) for line in lines if line.endswith("\n")]


async def test_a_killed_process_loses_nothing_that_it_acknowledged(path: Path) -> None:
    """After kill -9 in the middle of writes the last acknowledged pair is there, or a later one.

    Both halves of it are from the same transaction, and the next process owns the file.
    """
    acknowledged = 0
    for kill in range(KILLS):
        numbers = killed_writer(path, after=1 + 17 * kill)
        assert numbers[0] > acknowledged
        acknowledged = numbers[-1]
        pair = await reopened(path, "pair")
        left, right = (pair[side]["n"] for side in ("left", "right"))
        assert left == right >= acknowledged
        acknowledged = left
