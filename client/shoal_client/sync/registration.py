"""The calls, from threads, that let a server know models, or know them no longer."""

from __future__ import annotations

from shoal.v1.model_control_pb2 import RegisterModelRequest, RegisterModelResponse
from shoal_client.requests import new_deregister_request
from shoal_client.sync.versions import VersionsClient


class RegistrationClient(VersionsClient):
    """The part of `Client` that is about what a server knows."""

    def register_model(
        self, model: str, *, timeout_s: float | None = None, request_id: str = ""
    ) -> RegisterModelResponse:
        """Let the server know one folder of its repository as it is now.

        At once, and without a look at the others. Takes `deregister_model` back.

        Args:
            model: The folder's name.
            timeout_s: See the class.
            request_id: See the class.

        Returns:
            The model as it is then, and whether it is `added`, `changed` or `outdated`:
            served from memory by another version, until `load_model`.

        Raises:
            ModelNotFoundError: The repository has no such folder.
            FailedPreconditionError: An alias has that name.
        """
        request = RegisterModelRequest(model=model)
        return self._call(
            lambda server: server.control.RegisterModel, request, timeout_s, request_id
        )

    def deregister_model(
        self,
        model: str,
        *,
        force_after_s: float | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> None:
        """Let the server neither serve nor list a model; returns when its memory is free.

        That outlasts a restart, until `register_model`. The model's files stay.

        Args:
            model: Its name.
            force_after_s: Seconds that requests in flight get to finish, before they fail.
                Default: as long as the timeout allows; it is deregistered also when that
                passes.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ModelNotFoundError: There is no such model.
            FailedPreconditionError: An alias stands for it.
        """
        request = new_deregister_request(model, force_after_s)
        self._call(lambda server: server.control.DeregisterModel, request, timeout_s, request_id)
