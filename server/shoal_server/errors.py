"""What can go wrong, as a tree; the faces (gRPC, HTTP) each map it once.

    ShoalError
    ├── InvalidInput            the caller's input; names the field
    ├── ModelNotFound           no such model or version
    ├── FailedPrecondition      the model can not do this, as things stand
    │   ├── NothingToCompare    no vectors are kept with the version
    │   ├── UpdateFailed        a newer version could not be gone over to, this time
    │   └── ModelLoadFailed     its files, its device or the runtime refused
    │       ├── ModelUnusable       for what its files are: another try ends the same
    │       │   └── ModelFileCorrupt    a prepared file is not what was prepared
    │       └── AllocationFailed    there was not enough memory after all
    ├── Overloaded              no room now; says when to come back
    │   └── RateLimited             the caller asked for more than it may
    ├── DeadlineExceeded        the caller's time ran out while it waited
    ├── Unavailable             the server, or the model, is going away
    ├── InferenceFailed         the runtime failed or gave non-finite numbers
    ├── EventsOutOfRange        what a watcher wants to see is no longer kept, or never was
    └── NotPersisted            a change could not be written to disk, and was not made

Messages are for the caller: they name the limit and the value given, and hold
no paths, addresses or stack traces of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ShoalError(Exception):
    """Base of all that Shoal raises on purpose.

    Attributes:
        reason: Stable, machine-readable name; part of the API.
        message: One sentence for the caller.
        metadata: Facts as strings, such as the limit and the value given.
    """

    reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, metadata: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}


class InvalidInput(ShoalError):
    """The request can not be served as it is, now or later.

    Attributes:
        field: Path of the field as the protos name it, such as `texts[3]`.
    """

    reason = "INVALID_INPUT"

    def __init__(
        self, field: str, message: str, *, metadata: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(f"{field}: {message}", metadata=metadata)
        self.field = field


class ModelNotFound(ShoalError):
    """The repository has no such model, or not that version of it."""

    reason = "MODEL_NOT_FOUND"


class FailedPrecondition(ShoalError):
    """The model is there but can not do what was asked."""

    reason = "FAILED_PRECONDITION"


class NothingToCompare(FailedPrecondition):
    """A version was prepared without vectors that it could be compared with."""

    reason = "NOTHING_TO_COMPARE"


class UpdateFailed(FailedPrecondition):
    """A model could not go over to a newer version; another time it may."""

    reason = "UPDATE_FAILED"


class ModelLoadFailed(FailedPrecondition):
    """The model could not be brought into memory.

    Attributes:
        retry_after_s: Seconds for which the failure is remembered and no new
            load is tried; None when only an explicit load tries again.
    """

    reason = "MODEL_LOAD_FAILED"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.retry_after_s = retry_after_s


class ModelUnusable(ModelLoadFailed):
    """What is wrong lies in the version's own files: another try fails, too."""


class ModelFileCorrupt(ModelUnusable):
    """A prepared file is missing or differs from its SHA-256 in the manifest."""

    reason = "MODEL_FILE_CORRUPT"


class AllocationFailed(ModelLoadFailed):
    """The system refused the memory that loading took."""

    reason = "MODEL_OUT_OF_MEMORY"


class Overloaded(ShoalError):
    """There is no room for this request now.

    Attributes:
        retry_after_s: Seconds after which a new try has a chance.
    """

    reason = "OVERLOADED"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """The caller used up what it may ask for in a minute."""

    reason = "RATE_LIMITED"


class DeadlineExceeded(ShoalError):
    """The caller's deadline passed before the answer was there."""

    reason = "DEADLINE_EXCEEDED"


class Unavailable(ShoalError):
    """The server is draining, or the model was unloaded by force."""

    reason = "UNAVAILABLE"


class InferenceFailed(ShoalError):
    """The run failed, or this item's output had non-finite numbers.

    Attributes:
        not_finite: Whether it was the latter: the run itself went well.
    """

    reason = "INFERENCE_FAILED"

    def __init__(
        self,
        message: str,
        *,
        not_finite: bool = False,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata)
        self.not_finite = not_finite


class EventsOutOfRange(ShoalError):
    """The events from there on are no longer kept, or there were none such yet.

    Its metadata name the sequence number to resume after and the log it belongs to.
    """

    reason = "EVENTS_OUT_OF_RANGE"

    def __init__(self, message: str, *, resume_after: int, instance_id: str) -> None:
        super().__init__(
            message, metadata={"resume_after": resume_after, "instance_id": instance_id}
        )


class NotPersisted(ShoalError):
    """A change that should outlast the server could not be written; it was not made."""

    reason = "NOT_PERSISTED"
