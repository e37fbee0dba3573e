"""The one table from Shoal's errors to gRPC codes, and their rich form.

Errors carry google.rpc details as described in https://google.aip.dev/193.
"""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from shoal_server import errors
from shoal_server.errors import ShoalError

DOMAIN = "shoal"
DETAILS_KEY = "grpc-status-details-bin"

# The most special class of an error that is listed decides.
_CODES: dict[type[ShoalError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.InferenceFailed: grpc.StatusCode.INTERNAL,
    errors.EventsOutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.NotPersisted: grpc.StatusCode.INTERNAL,
    ShoalError: grpc.StatusCode.INTERNAL,
}


def code_of(error: ShoalError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)


def rich_status(error: ShoalError) -> status_pb2.Status:
    """Code, message, and ErrorInfo, BadRequest and RetryInfo where they apply."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=DOMAIN, metadata=dict(error.metadata)
        )
    ]
    if isinstance(error, errors.InvalidInput):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_of(error).value[0], message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
