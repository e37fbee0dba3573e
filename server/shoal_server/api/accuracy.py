"""How close a model came to its kept vectors, as it travels."""

from __future__ import annotations

from shoal.v1 import verification_pb2 as pb
from shoal_server.registry.accuracy import Accuracy


def write_accuracy(accuracy: Accuracy) -> pb.Accuracy:
    """The message of an outcome."""
    message = pb.Accuracy(
        texts=accuracy.texts,
        mean_cosine=accuracy.mean,
        least_cosine=accuracy.least,
        expected_mean_cosine=accuracy.expected_mean,
        expected_least_cosine=accuracy.expected_least,
        tolerance=accuracy.tolerance,
        passed=accuracy.passed,
        problem=accuracy.problem,
        reference=accuracy.reference,
        precision=accuracy.precision,
    )
    message.time.FromMicroseconds(round(accuracy.at_s * 1e6))
    message.duration.FromNanoseconds(round(accuracy.seconds * 1e9))
    return message
