"""The one table from errors to gRPC codes, and the details that come with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest
from google.rpc import error_details_pb2 as rpc

from shoal_server import errors
from shoal_server.api.status import code_of, rich_status
from shoal_server.errors import ShoalError

Code = grpc.StatusCode

# As DESIGN.md has it; an error that is not listed takes the code of its parent.
EXPECTED: dict[type[ShoalError], grpc.StatusCode] = {
    errors.InvalidInput: Code.INVALID_ARGUMENT,
    errors.ModelNotFound: Code.NOT_FOUND,
    errors.FailedPrecondition: Code.FAILED_PRECONDITION,
    errors.ModelLoadFailed: Code.FAILED_PRECONDITION,
    errors.ModelFileCorrupt: Code.FAILED_PRECONDITION,
    errors.AllocationFailed: Code.FAILED_PRECONDITION,
    errors.Overloaded: Code.RESOURCE_EXHAUSTED,
    errors.RateLimited: Code.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.Unavailable: Code.UNAVAILABLE,
    errors.InferenceFailed: Code.INTERNAL,
    errors.EventsOutOfRange: Code.OUT_OF_RANGE,
    errors.NotPersisted: Code.INTERNAL,
    errors.NothingToCompare: Code.FAILED_PRECONDITION,
    errors.UpdateFailed: Code.FAILED_PRECONDITION,
    errors.ModelUnusable: Code.FAILED_PRECONDITION,
}
# What some take besides the message.
MAKE: dict[type[ShoalError], Callable[[], ShoalError]] = {
    errors.InvalidInput: lambda: errors.InvalidInput("texts[3]", "is too long"),
    errors.Overloaded: lambda: errors.Overloaded("is too long", retry_after_s=1.0),
    errors.EventsOutOfRange: lambda: errors.EventsOutOfRange(
        "is too long", resume_after=1, instance_id="i"
    ),
    errors.RateLimited: lambda: errors.RateLimited("is too long", retry_after_s=1.0),
}


def subclasses(parent: type[ShoalError]) -> Iterator[type[ShoalError]]:
    for child in parent.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from subclasses(child)


ALL = list(subclasses(ShoalError))


def make(kind: type[ShoalError]) -> ShoalError:
    return MAKE.get(kind, lambda: kind("is too long"))()


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_its_code(kind: type[ShoalError]) -> None:
    """As the design says; a class that is added must be added here."""
    assert code_of(make(kind)) is EXPECTED[kind]
    assert rich_status(make(kind)).code == EXPECTED[kind].value[0]


def test_an_error_of_no_class_of_its_own_is_internal() -> None:
    """Nothing falls through the table."""

    class Surprise(ShoalError):
        pass

    assert code_of(ShoalError("?")) is code_of(Surprise("?")) is Code.INTERNAL


def test_reasons_are_unique() -> None:
    """Each error that has one of its own can be told by it: part of the API, in capitals."""
    reasons = [kind.reason for kind in ALL if "reason" in vars(kind)]
    assert len(set(reasons)) == len(reasons)
    assert all(reason == reason.upper() and reason.replace("_", "").isalpha() for reason in reasons)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_carries_its_reason_and_facts(kind: type[ShoalError]) -> None:
    """ErrorInfo comes first: reason, our domain, metadata as strings."""
    error = make(kind)
    error.metadata = {"limit": "512"}
    status = rich_status(error)
    info = rpc.ErrorInfo()
    assert status.message == error.message == str(error)
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        kind.reason,
        "shoal",
        {"limit": "512"},
    )


def details(error: ShoalError) -> list[str]:
    return [each.TypeName() for each in rich_status(error).details]


def test_an_invalid_input_names_its_field() -> None:
    """BadRequest with one violation, the field as the protos name it."""
    status = rich_status(errors.InvalidInput("texts[3]", "612 tokens, the model takes 512"))
    bad = rpc.BadRequest()
    assert status.details[1].Unpack(bad)
    (violation,) = bad.field_violations
    assert violation.field == "texts[3]"
    assert violation.description == "texts[3]: 612 tokens, the model takes 512"


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.05, (0, 50_000_000)), (1.5, (1, 500_000_000)), (30.0, (30, 0))]
)
def test_what_may_be_tried_again_says_when(seconds: float, expected: tuple[int, int]) -> None:
    """RetryInfo, to the nanosecond, for overload and for a load that is remembered."""
    for error in (
        errors.Overloaded("full", retry_after_s=seconds),
        errors.ModelLoadFailed("no good", retry_after_s=seconds),
    ):
        retry = rpc.RetryInfo()
        assert rich_status(error).details[1].Unpack(retry)
        assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == expected


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in MAKE])
def test_the_others_carry_nothing_else(kind: type[ShoalError]) -> None:
    """No BadRequest where no field is to blame, no RetryInfo where waiting does not help."""
    assert details(make(kind)) == ["google.rpc.ErrorInfo"]


def test_metadata_is_made_of_strings() -> None:
    """Numbers are given as they are and travel as text."""
    error = errors.DeadlineExceeded("late", metadata={"limit": 5, "value": 6.5})
    assert error.metadata == {"limit": "5", "value": "6.5"}
