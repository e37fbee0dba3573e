"""The call, from threads, that tells when models are asked for."""

from __future__ import annotations

from shoal.v1.usage_pb2 import GetUsageRequest, GetUsageResponse
from shoal_client.sync.versions import VersionsClient


class UsageClient(VersionsClient):
    """The part of `Client` that is about patterns of use."""

    def get_usage(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> GetUsageResponse:
        """In which hours of the week models are asked for, and what is expected soon.

        Args:
            model: As callers ask for it: "name", "name@version" or an alias. Empty: all.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ModelNotFoundError: Nobody ever asked for that, and no model has that name.
        """
        request = GetUsageRequest(model=model)
        return self._call(lambda server: server.control.GetUsage, request, timeout_s, request_id)
