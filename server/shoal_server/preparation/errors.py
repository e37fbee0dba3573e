"""What can go wrong while a model is prepared, as a tree.

    PreparationError
    ├── SourceNotFound       no such folder, package, hub repository or revision
    ├── HubUnavailable       the hub does not answer, and its cache has nothing
    ├── HubAccessDenied      the hub wants a token, or this one may not read it
    ├── Unsupported          the model needs what we do not do
    ├── PoolingUnknown       the source does not say how token vectors become one
    ├── EnvironmentFailed    the export environment could not be made
    ├── ExportFailed         the exporter refused the model
    ├── ReferenceMismatch    the prepared graph is not the model
    ├── AlreadyPrepared      the version is there and was made from something else
    └── DiskFull             no space left

Messages are for the person at the terminal: they may hold paths of this machine.
"""

from __future__ import annotations


class PreparationError(Exception):
    """Base of all that preparing a model raises on purpose; the text says what to do."""


class SourceNotFound(PreparationError):
    """There is nothing to prepare where SOURCE points."""


class HubUnavailable(PreparationError):
    """The hub does not answer and nothing of the repository is cached."""


class HubAccessDenied(PreparationError):
    """The repository is gated or private, and the token does not open it."""


class Unsupported(PreparationError):
    """The model needs something that a prepared graph can not do."""


class PoolingUnknown(PreparationError):
    """The source does not say its pooling, and no `--pooling` was given."""


class EnvironmentFailed(PreparationError):
    """The export environment could not be made."""


class ExportFailed(PreparationError):
    """The export environment could not export the model or run its reference."""


class ReferenceMismatch(PreparationError):
    """The prepared graph gives other vectors than the reference runtime."""


class AlreadyPrepared(PreparationError):
    """The version exists already and is not what was asked for."""


class DiskFull(PreparationError):
    """The file system of the model repository has no space left."""
