"""What is raised for models that are not there, and files that are not what they should be."""

from __future__ import annotations

import errno

from shoal_server.core import ModelKey
from shoal_server.errors import ModelFileCorrupt, ModelLoadFailed, ModelNotFound

# No file handles, no memory, a disk or a network that failed.
_OF_THE_SYSTEM = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EIO,
        errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN,
    }
)  # fmt: skip


def no_model(name: str) -> ModelNotFound:
    """There is no such model."""
    return ModelNotFound(f"there is no model {name!r}", metadata={"model": name})


def no_version(name: str, version: str) -> ModelNotFound:
    """The model has no such version."""
    return ModelNotFound(
        f"model {name!r} has no version {version!r}", metadata={"model": name, "version": version}
    )


def unreadable(name: str, version: str, file_name: str, error: Exception) -> ModelLoadFailed:
    """What is raised for a version's file that can not be read, or not understood.

    Returns:
        `ModelFileCorrupt`, unless the system refused what it may give another time.
    """
    what = plainly(error, file_name)
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        return ModelLoadFailed(f"model {ModelKey(name, version)}: {what}")
    return corrupt(name, version, file_name, what)


def corrupt(name: str, version: str, file_name: str, what: str) -> ModelFileCorrupt:
    """A file of a version is not what was prepared."""
    return ModelFileCorrupt(
        f"model {ModelKey(name, version)}: {what}",
        metadata={"model": name, "version": version, "file": file_name},
    )


def plainly(error: Exception, file_name: str) -> str:
    """What is wrong with a manifest, as callers are told."""
    # OSError's own text holds the machine's path, which callers are not told.
    if isinstance(error, OSError):
        return f"{file_name} can not be read: {error.strerror}"
    return str(error)
