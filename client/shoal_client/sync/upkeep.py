"""The calls, from threads, that keep models as they should be."""

from __future__ import annotations

from shoal.v1.updates_pb2 import ModelReloaded, ReloadModelRequest, UpdateModelResponse
from shoal.v1.verification_pb2 import ModelVerified, VerifyModelRequest
from shoal_client.requests import new_update_request
from shoal_client.sync.versions import VersionsClient


class UpkeepClient(VersionsClient):
    """The part of `Client` that verifies, reloads and updates models."""

    def verify_model(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> list[ModelVerified]:
        """Compare a model's vectors with those that are kept with it since it was prepared.

        Whether it passed, each result's `accuracy.passed` says. It is loaded where it is
        not in memory.

        Args:
            model: "name", "name@version" or an alias; empty: the default model.
            timeout_s: See the class. Large models take long.
            request_id: See the class.

        Returns:
            One for each version that the name stands for.

        Raises:
            ModelNotFoundError: The repository has none of that name.
            FailedPreconditionError: No vectors are kept with it, or it can not be loaded.
        """
        request = VerifyModelRequest(model=model)
        response = self._call(
            lambda server: server.control.VerifyModel, request, timeout_s, request_id
        )
        return list(response.results)

    def reload_model(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> list[ModelReloaded]:
        """Let the server read a model's files again; returns when it serves what they say.

        Requests are served all the while. A model that is not in memory is not loaded:
        its files are checked, and an earlier failure is forgotten.

        Args:
            model: See `verify_model`. A bare name is the version that it means so far.
            timeout_s: See the class. Large models take long to load.
            request_id: See the class.

        Returns:
            One for each version that the name stands for.

        Raises:
            ModelNotFoundError: The repository has none of that name.
            FailedPreconditionError: The files can not be served; what was served before is.
        """
        request = ReloadModelRequest(model=model)
        response = self._call(
            lambda server: server.control.ReloadModel, request, timeout_s, request_id
        )
        return list(response.results)

    def update_model(
        self,
        model: str = "",
        *,
        source: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> UpdateModelResponse:
        """Let a model's bare name mean the newest version that is good.

        It is verified and loaded first. Requests are served all the while. The answer's
        `bad_versions` are those that were passed over.

        Args:
            model: Name of a model; empty: the default model.
            source: "repository": its folder there; "hub": where it came from, whose newer
                revision is prepared first. Default: the server's setting auto_update.
            timeout_s: See the class. Preparing a model takes minutes.
            request_id: See the class.

        Raises:
            ModelNotFoundError: The repository has none of that name.
            FailedPreconditionError: The name is pinned to a version, or no newer one is
                good; the name means what it meant.
            InvalidArgumentError: `source` is another word.
        """
        request = new_update_request(model, source)
        return self._call(lambda server: server.control.UpdateModel, request, timeout_s, request_id)
