"""The calls, from threads, that change what names of models mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.v1.versions_pb2 import (
    Alias,
    DeleteAliasRequest,
    DeprecateModelRequest,
    DiscoverModelsRequest,
    DiscoverModelsResponse,
    ListAliasesRequest,
    RollbackModelRequest,
    SetVersionPolicyRequest,
    SetVersionPolicyResponse,
    UpdateTagsRequest,
)
from shoal_client.base import ClientBase
from shoal_client.ranges import whole
from shoal_client.requests import new_deprecation, new_switch_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from shoal_client.sync.calls import Method, Request, Response


class VersionsClient(ClientBase):
    """The part of `Client` that is about aliases and versions."""

    def switch_model(
        self,
        alias: str,
        targets: str | Mapping[str, int],
        *,
        keep_previous: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Alias:
        """Let an alias stand for other versions, or make it; returns when it does.

        They are loaded first. Requests are served all the while, by what the alias stood
        for before; where one can not be loaded, it stays so.

        Args:
            alias: A name that no model has.
            targets: "name" or "name@version"; or several of them, with the weight of
                each, to share the traffic (see `EmbedOptions.routing_key`).
            keep_previous: Leave versions in memory that no name means any longer.
            timeout_s: See the class. Large models take long to load.
            request_id: See the class.

        Raises:
            ModelNotFoundError: There is no such model or version.
            FailedPreconditionError: It can not be loaded, or is deprecated and refused, or the
                alias is a model's name.
        """
        request = new_switch_request(alias, targets, keep_previous)
        response = self._call(
            lambda server: server.control.SwitchModel, request, timeout_s, request_id
        )
        return response.alias

    def rollback_model(
        self,
        alias: str,
        *,
        revision: int | None = None,
        keep_previous: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Alias:
        """Let an alias stand for what it stood for before; again: for what was before that.

        Never tried again by the SDK: a second one would go back further.

        Args:
            alias: Its name.
            revision: Of its history. Default: what served before the last switch.
            keep_previous: See `switch_model`.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ModelNotFoundError: There is no such alias.
            FailedPreconditionError: There is no such revision, or nothing before, or what was is
                deprecated and refused.
        """
        request = RollbackModelRequest(
            alias=alias, revision=whole(revision, "revision"), keep_previous=keep_previous
        )
        response = self._call(
            lambda server: server.control.RollbackModel,
            request,
            timeout_s,
            request_id,
            once=True,
        )
        return response.alias

    def delete_alias(
        self, alias: str, *, timeout_s: float | None = None, request_id: str = ""
    ) -> None:
        """Forget an alias and its history; what it stood for stays in memory.

        Never tried again by the SDK: a second one would find nothing.

        Args:
            alias: Its name.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ModelNotFoundError: There is no such alias.
        """
        self._call(
            lambda server: server.control.DeleteAlias,
            DeleteAliasRequest(alias=alias),
            timeout_s,
            request_id,
            once=True,
        )

    def list_aliases(self, *, timeout_s: float | None = None, request_id: str = "") -> list[Alias]:
        """Every alias with its history, by name."""
        response = self._call(
            lambda server: server.control.ListAliases, ListAliasesRequest(), timeout_s, request_id
        )
        return list(response.aliases)

    def set_version_policy(
        self,
        model: str,
        version: str = "",
        *,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> SetVersionPolicyResponse:
        """Pin which version a model's bare name means, or unpin it.

        When the name is served from memory, that version is loaded first.

        Args:
            model: Name of a model.
            version: To pin it to. Default: model.toml's default_version, else the newest
                that is not known to be bad.
            timeout_s: See the class.
            request_id: See the class.

        Returns:
            `version`, which the bare name means now; `bad_versions`: it, where it is known to
            be bad, else the newer ones that an unpinned name passes over.

        Raises:
            ModelNotFoundError: There is no such model or version.
            FailedPreconditionError: It can not be loaded, or is deprecated and refused.
        """
        request = SetVersionPolicyRequest(model=model, version=version)
        return self._call(
            lambda server: server.control.SetVersionPolicy, request, timeout_s, request_id
        )

    def discover_models(
        self, *, timeout_s: float | None = None, request_id: str = ""
    ) -> DiscoverModelsResponse:
        """Let the server read its repository anew; tells what is new, gone and changed.

        Names that are not served from memory mean what is there now. `outdated` ones go
        over to it by `load_model`.
        """
        return self._call(
            lambda server: server.control.DiscoverModels,
            DiscoverModelsRequest(),
            timeout_s,
            request_id,
        )

    def update_tags(
        self,
        model: str,
        *,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> list[str]:
        """Give a model tags, and take others away.

        Args:
            model: "name" for all its versions, or "name@version" for one.
            add: Tags: letters, digits, '.', '_', ':', '/', '-'.
            remove: Those that are not there are ignored.
            timeout_s: See the class.
            request_id: See the class.

        Returns:
            Its own tags now, sorted.
        """
        request = UpdateTagsRequest(model=model, add=add, remove=remove)
        response = self._call(
            lambda server: server.control.UpdateTags, request, timeout_s, request_id
        )
        return list(response.tags)

    def deprecate_model(
        self,
        model: str,
        *,
        replacement: str = "",
        message: str = "",
        refuse_after: datetime | None = None,
        deprecated: bool = True,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> None:
        """Say that a model should not be used any longer; it is served as before.

        Its answers say so: see `Embeddings.deprecation`.

        Args:
            model: "name" for all its versions, or "name@version" for one.
            replacement: What to ask for instead: a model, version or alias that there is.
            message: For people.
            refuse_after: From then on requests for it fail. Default: never.
            deprecated: False takes it back.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ModelNotFoundError: There is no such model or version, or no such replacement.
        """
        request = DeprecateModelRequest(model=model)
        if deprecated:
            request.deprecation.CopyFrom(new_deprecation(replacement, message, refuse_after))
        self._call(lambda server: server.control.DeprecateModel, request, timeout_s, request_id)

    def _call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout_s: float | None,
        request_id: str,
        *,
        once: bool = False,
    ) -> Response:
        """The answer to one call; `once` for those that are not idempotent."""
        raise NotImplementedError
