"""The calls, from tasks, that change what names of models mean."""

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

    from shoal_client.aio.calls import Method, Request, Response


class AsyncVersionsClient(ClientBase):
    """The part of `AsyncClient` that is about aliases and versions."""

    async def switch_model(
        self,
        alias: str,
        targets: str | Mapping[str, int],
        *,
        keep_previous: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Alias:
        """As `Client.switch_model`."""
        request = new_switch_request(alias, targets, keep_previous)
        response = await self._call(
            lambda server: server.control.SwitchModel, request, timeout_s, request_id
        )
        return response.alias

    async def rollback_model(
        self,
        alias: str,
        *,
        revision: int | None = None,
        keep_previous: bool = False,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Alias:
        """As `Client.rollback_model`."""
        request = RollbackModelRequest(
            alias=alias, revision=whole(revision, "revision"), keep_previous=keep_previous
        )
        response = await self._call(
            lambda server: server.control.RollbackModel,
            request,
            timeout_s,
            request_id,
            once=True,
        )
        return response.alias

    async def delete_alias(
        self, alias: str, *, timeout_s: float | None = None, request_id: str = ""
    ) -> None:
        """As `Client.delete_alias`."""
        await self._call(
            lambda server: server.control.DeleteAlias,
            DeleteAliasRequest(alias=alias),
            timeout_s,
            request_id,
            once=True,
        )

    async def list_aliases(
        self, *, timeout_s: float | None = None, request_id: str = ""
    ) -> list[Alias]:
        """As `Client.list_aliases`."""
        response = await self._call(
            lambda server: server.control.ListAliases, ListAliasesRequest(), timeout_s, request_id
        )
        return list(response.aliases)

    async def set_version_policy(
        self,
        model: str,
        version: str = "",
        *,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> SetVersionPolicyResponse:
        """As `Client.set_version_policy`."""
        request = SetVersionPolicyRequest(model=model, version=version)
        return await self._call(
            lambda server: server.control.SetVersionPolicy, request, timeout_s, request_id
        )

    async def discover_models(
        self, *, timeout_s: float | None = None, request_id: str = ""
    ) -> DiscoverModelsResponse:
        """As `Client.discover_models`."""
        return await self._call(
            lambda server: server.control.DiscoverModels,
            DiscoverModelsRequest(),
            timeout_s,
            request_id,
        )

    async def update_tags(
        self,
        model: str,
        *,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> list[str]:
        """As `Client.update_tags`."""
        request = UpdateTagsRequest(model=model, add=add, remove=remove)
        response = await self._call(
            lambda server: server.control.UpdateTags, request, timeout_s, request_id
        )
        return list(response.tags)

    async def deprecate_model(
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
        """As `Client.deprecate_model`."""
        request = DeprecateModelRequest(model=model)
        if deprecated:
            request.deprecation.CopyFrom(new_deprecation(replacement, message, refuse_after))
        await self._call(
            lambda server: server.control.DeprecateModel, request, timeout_s, request_id
        )

    async def _call(
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
