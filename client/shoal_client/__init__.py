"""Python SDK of the Shoal embedding server.

    from shoal_client import Client

    with Client("127.0.0.1:50051") as client:
        vectors = client.embed(["one text", "another"]).vectors  # float32[2, D]

`AsyncClient` is the same for asyncio. `errors` shows what calls can raise.
"""

from shoal_client.aio.client import AsyncClient
from shoal_client.coalescing import Coalescing
from shoal_client.connection import Tls
from shoal_client.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ModelNotFoundError,
    OutOfRangeError,
    OverloadedError,
    PermissionDeniedError,
    ShoalError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from shoal_client.requests import EmbedOptions
from shoal_client.results import Embeddings, HealthStatus
from shoal_client.retry import RetryPolicy
from shoal_client.settings import Setting
from shoal_client.statistics import (
    CallerUsage,
    GpuStatistics,
    Latency,
    ModelStatistics,
    Statistics,
    Totals,
    Traffic,
    UsageCounts,
)
from shoal_client.sync.client import Client

__all__ = [
    "AsyncClient",
    "CallerUsage",
    "Client",
    "Coalescing",
    "DeadlineExceededError",
    "EmbedOptions",
    "Embeddings",
    "FailedPreconditionError",
    "GpuStatistics",
    "HealthStatus",
    "InternalError",
    "InvalidArgumentError",
    "Latency",
    "ModelNotFoundError",
    "ModelStatistics",
    "OutOfRangeError",
    "OverloadedError",
    "PermissionDeniedError",
    "RetryPolicy",
    "Setting",
    "ShoalError",
    "Statistics",
    "Tls",
    "Totals",
    "Traffic",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UsageCounts",
]
