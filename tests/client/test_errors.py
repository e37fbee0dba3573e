"""From the status of a call to a typed error."""

from __future__ import annotations

import copy
import pickle

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc.aio import AioRpcError, Metadata

from shoal_client import (
    FailedPreconditionError,
    InvalidArgumentError,
    OverloadedError,
    ShoalError,
    UnavailableError,
    errors,
)
from tests.client import fake as fakes


def rpc_error(
    code: grpc.StatusCode, message: str, *trailing: tuple[str, str | bytes]
) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*trailing), message)


def test_details_become_attributes() -> None:
    """ErrorInfo, BadRequest and RetryInfo are read from the trailing metadata."""
    rich = fakes.status(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="OVERLOADED", retry_after_s=1.5
    )
    trailing = (
        ("x-request-id", "r1"),
        ("grpc-status-details-bin", rich.SerializeToString()),
    )
    error = errors.from_rpc_error(
        rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", *trailing), "sent"
    )
    assert isinstance(error, OverloadedError)
    assert (error.message, error.reason, error.retry_after_s) == ("full", "OVERLOADED", 1.5)
    assert (error.metadata, error.request_id) == ({"limit": "512"}, "r1")


def test_plain_code_is_enough() -> None:
    """An error that comes from gRPC or a proxy has its class and no reason."""
    error = errors.from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "refused"), "sent")
    assert isinstance(error, UnavailableError)
    assert (error.reason, error.retry_after_s, error.request_id) == ("", None, "sent")


def test_garbage_in_place_of_details_is_ignored() -> None:
    """The code still tells the class when the details can not be read."""
    broken = ("grpc-status-details-bin", b"\xff\xff\xff")
    error = errors.from_rpc_error(rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "bad", broken))
    assert isinstance(error, InvalidArgumentError)


def test_reason_of_another_domain_is_not_taken_for_ours() -> None:
    """A proxy's ErrorInfo does not pose as the server's."""
    rich = fakes.status(grpc.StatusCode.UNAVAILABLE, reason="OVERLOADED")
    info = error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="proxy.example")
    rich.details[0].Pack(info)
    assert errors.from_status(rich).reason == ""


def test_stream_status_has_the_same_shape() -> None:
    """An error inside of a stream is typed as the error of a call."""
    error = errors.from_status(fakes.invalid("texts[3]"), "job")
    assert isinstance(error, InvalidArgumentError)
    assert (error.field, error.reason, error.request_id) == ("texts[3]", "INVALID_INPUT", "job")


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("texts[3]", "texts[103]"),
        ("tokens[3].ids[5]", "tokens[103].ids[5]"),
        ("dimensions", "dimensions"),
        ("", ""),
    ],
)
def test_shifted_index(field: str, expected: str) -> None:
    """Field and message count from the start of all inputs; other fields stay."""
    error = InvalidArgumentError(f"{field}: too long", field=field)
    error.shift_index(100)
    assert (error.field, str(error)) == (expected, f"{expected}: too long")


def test_invalid_argument_is_a_value_error() -> None:
    """Code that knows nothing of Shoal can catch it."""
    assert issubclass(InvalidArgumentError, ValueError)


def test_errors_survive_pickling() -> None:
    """Worker processes can hand errors to their parents."""
    error = FailedPreconditionError("no", reason="MODEL_LOAD_FAILED", request_id="r")
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), str(twin), twin.reason, twin.request_id) == (
        FailedPreconditionError,
        "no",
        "MODEL_LOAD_FAILED",
        "r",
    )
    assert str(copy.copy(error)) == "no"


def test_traceback_names_the_request() -> None:
    """The id that the server's logs have is part of an uncaught error's report."""
    assert ShoalError("no", request_id="r1").__notes__ == ["request id: r1"]
