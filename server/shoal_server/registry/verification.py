"""That a version's files are what was prepared, told by reading as little as will do.

The SHA-256 of every file is compared with its manifest. A file that was checked before,
and that nobody has written to since, is not read again: as in git's index, its inode,
size and times say so. The graph and the tokenizer are checked before they are opened.
Weights are only numbers, and most of the bytes: they are checked meanwhile, and the
load ends when both are done.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from shoal_server.errors import ModelFileCorrupt
from shoal_server.registry.file_errors import unreadable
from shoal_server.registry.manifest import TOKENIZER_FILE
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.repository import ModelRepository

# Of a file: device, inode, size, times of the last change of content and of inode.
Signature = list[int]

# The clocks of files tick in milliseconds, on some file systems in whole seconds: a
# second write in the same tick leaves the times as they are.
_TICK_NS = 2_000_000_000


def signature(path: Path) -> Signature:
    """What changes whenever a file is written to, also when its times are set back.

    Raises:
        OSError: It can not be looked at.
    """
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def is_settled(seen: Signature, at_ns: int) -> bool:
    """Whether any write after `at_ns` will show in the signature that was taken then.

    Args:
        seen: The signature.
        at_ns: Before it was taken; of `time.time_ns`.
    """
    changed_ns = seen[-1]
    return changed_ns < at_ns - _TICK_NS


class Verification:
    """The check of one version's files at one load. Its methods block on the disk."""

    def __init__(
        self, repository: ModelRepository, version: ModelVersion, checked: Mapping[str, Signature]
    ) -> None:
        """Look at the files; nothing is read yet.

        Args:
            repository: Has the files.
            version: What is loaded.
            checked: Files, by path, that were what this version says when they had
                these signatures.
        """
        self._repository = repository
        self._version = version
        self._at_ns = time.time_ns()
        self.signatures: dict[str, Signature] = {}
        """Of the files that are there, by path, from before they were read."""
        self._unread: dict[str, str] = {}
        for name, digest in version.files.items():
            path = version.folder / name
            with suppress(OSError):
                self.signatures[str(path)] = signature(path)
            seen = self.signatures.get(str(path))
            if seen is None or seen != checked.get(str(path)):
                self._unread[name] = digest

    def check_graph(self) -> None:
        """Check what tells the runtime what to do, and that nothing is missing.

        Raises:
            ModelFileCorrupt: A file is missing, unreadable or not what was prepared.
        """
        key = self._version.key
        self._repository.look_for_files(key.name, key.version, self._unread)
        first = {self._version.chosen.graph, TOKENIZER_FILE}
        self._check({name: self._unread[name] for name in self._unread if name in first})

    def check_weights(self) -> None:
        """Check the rest; may be called while the graph is opened.

        Raises:
            ModelFileCorrupt: A file is unreadable or not what was prepared.
        """
        first = {self._version.chosen.graph, TOKENIZER_FILE}
        self._check({name: self._unread[name] for name in self._unread if name not in first})

    def checked(self) -> dict[str, Signature]:
        """After both checks: what the next load need not read, by path.

        Files that were written to just before are left out: a further write might not
        show in their times.
        """
        return {
            path: seen for path, seen in self.signatures.items() if is_settled(seen, self._at_ns)
        }

    def read(self, names: Iterable[str], *, verify: bool) -> dict[str, bytes]:
        """The contents of some files, by path below the version's folder.

        Args:
            names: Of the version's files.
            verify: Whether their SHA-256 is compared, of the very bytes that are given.

        Raises:
            ModelFileCorrupt: A file is missing, unreadable or not what was prepared.
            ModelLoadFailed: The system refused to read one.
        """
        key = self._version.key
        names = list(names)
        self._repository.look_for_files(key.name, key.version, names)
        contents = {}
        for name in names:
            try:
                data = (self._version.folder / name).read_bytes()
            except OSError as error:
                raise unreadable(key.name, key.version, name, error) from error
            if verify and hashlib.sha256(data).hexdigest() != self._version.files[name]:
                raise ModelFileCorrupt(
                    f"model {key}: {name} is not the file that was prepared (its SHA-256 differs)"
                )
            contents[name] = data
        return contents

    def still_holds(self) -> bool:
        """Whether the files have the signatures yet that they had before they were read."""
        try:
            return all(signature(Path(path)) == seen for path, seen in self.signatures.items())
        except OSError:
            return False

    def _check(self, files: Mapping[str, str]) -> None:
        key = self._version.key
        self._repository.verify_files(key.name, key.version, files)
