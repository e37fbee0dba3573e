"""The calls of ModelControlService about names: between their messages and the switcher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import grpc
from google.protobuf import duration_pb2, timestamp_pb2

from shoal.v1 import versions_pb2 as pb
from shoal_server.api.deadline import within_deadline
from shoal_server.api.model_control import SERVICE
from shoal_server.api.rpc import Call, Rpcs
from shoal_server.catalog import Catalog
from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ShoalError
from shoal_server.registry.aliases import Alias, Target, check_count
from shoal_server.registry.events import NameSwitched
from shoal_server.registry.meanings import NamedTarget
from shoal_server.registry.registry import Registry
from shoal_server.switching import Switcher

_LOADING = (
    "the new version was still loading; what served before serves on, unless the change was "
    "being written just then"
)


class VersionsServicer:
    """Answers the calls of `shoal.v1.ModelControlService` that change what names mean."""

    def __init__(self, registry: Registry, switcher: Switcher, catalog: Catalog) -> None:
        """Wire it.

        Args:
            registry: Has the names.
            switcher: Changes them.
            catalog: Looks for new models.
        """
        self._catalog = catalog
        self._registry = registry
        self._switcher = switcher

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """These methods for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "SwitchModel": rpcs.unary("SwitchModel", pb.SwitchModelRequest, self.switch),
                "RollbackModel": rpcs.unary(
                    "RollbackModel", pb.RollbackModelRequest, self.roll_back
                ),
                "DiscoverModels": rpcs.unary(
                    "DiscoverModels", pb.DiscoverModelsRequest, self.discover
                ),
                "DeleteAlias": rpcs.unary("DeleteAlias", pb.DeleteAliasRequest, self.delete_alias),
                "ListAliases": rpcs.unary("ListAliases", pb.ListAliasesRequest, self.list_aliases),
                "SetVersionPolicy": rpcs.unary(
                    "SetVersionPolicy", pb.SetVersionPolicyRequest, self.set_version_policy
                ),
            },
        )

    async def switch(self, message: pb.SwitchModelRequest, call: Call) -> pb.SwitchModelResponse:
        """Let an alias stand for other versions."""
        call.model = message.alias
        async with within_deadline(call, _LOADING):
            done = await self._switcher.switch(
                message.alias, _read_targets(message.targets), keep_previous=message.keep_previous
            )
        return pb.SwitchModelResponse(
            alias=_write_alias(done.alias),
            times=_write_times(done.switch),
            bad_versions=await self._bad_versions(each.key for each in done.alias.targets),
        )

    async def roll_back(
        self, message: pb.RollbackModelRequest, call: Call
    ) -> pb.RollbackModelResponse:
        """Let an alias stand for what it stood for before."""
        call.model = message.alias
        revision = message.revision if message.HasField("revision") else None
        async with within_deadline(call, _LOADING):
            done = await self._switcher.roll_back(
                message.alias, revision, keep_previous=message.keep_previous
            )
        return pb.RollbackModelResponse(
            alias=_write_alias(done.alias),
            times=_write_times(done.switch),
            bad_versions=await self._bad_versions(each.key for each in done.alias.targets),
        )

    async def delete_alias(
        self, message: pb.DeleteAliasRequest, call: Call
    ) -> pb.DeleteAliasResponse:
        """Forget an alias."""
        call.model = message.alias
        await self._switcher.remove_alias(message.alias)
        return pb.DeleteAliasResponse()

    async def list_aliases(self, _: pb.ListAliasesRequest, __: Call) -> pb.ListAliasesResponse:
        """Every alias."""
        aliases = sorted(self._registry.aliases.values(), key=lambda alias: alias.name)
        return pb.ListAliasesResponse(aliases=map(_write_alias, aliases))

    async def discover(self, _: pb.DiscoverModelsRequest, __: Call) -> pb.DiscoverModelsResponse:
        """Read the repository anew."""
        found = await self._catalog.discover()
        return pb.DiscoverModelsResponse(
            added=found.added,
            removed=found.removed,
            changed=found.changed,
            outdated=found.outdated,
        )

    async def set_version_policy(
        self, message: pb.SetVersionPolicyRequest, call: Call
    ) -> pb.SetVersionPolicyResponse:
        """Pin what a model's bare name means, or unpin it."""
        call.model = message.model
        async with within_deadline(call, _LOADING):
            key = await self._switcher.set_version_policy(message.model, message.version or None)
        bad = await self._bad_versions([key])
        if not bad and not message.version:
            with suppress(ShoalError):  # as below
                passed_over = await self._registry.passed_over(key.name)
                bad = [write_bad_version(*each) for each in passed_over.items()]
        return pb.SetVersionPolicyResponse(version=key.version, bad_versions=bad)

    async def _bad_versions(self, keys: Iterable[ModelKey]) -> list[pb.BadVersion]:
        """Those that are known to be bad."""
        bad = []
        for key in keys:
            with suppress(ShoalError):  # the change is made: what can not be read now is left out
                if (reason := await self._registry.why_bad(key)) is not None:
                    bad.append(write_bad_version(key, reason))
        return bad


def write_bad_version(key: ModelKey, reason: str) -> pb.BadVersion:
    """What is known to be wrong with a version."""
    return pb.BadVersion(model=str(key), reason=reason)


def _read_targets(messages: Sequence[pb.AliasTarget]) -> list[NamedTarget]:
    check_count(len(messages), "targets")  # before so many are looked up
    return [
        NamedTarget(
            ModelRef.parse(each.model, f"targets[{index}].model"),
            each.weight if each.HasField("weight") else 1,
        )
        for index, each in enumerate(messages)
    ]


def _write_alias(alias: Alias) -> pb.Alias:
    return pb.Alias(
        name=alias.name,
        targets=_write_targets(alias.targets),
        history=[
            pb.AliasRevision(
                number=each.number,
                targets=_write_targets(each.targets),
                since=_write_time(each.at_s),
                restores=each.restores or 0,
            )
            for each in alias.revisions
        ],
    )


def _write_targets(targets: Sequence[Target]) -> list[pb.AliasTarget]:
    return [pb.AliasTarget(model=str(each.key), weight=each.weight) for each in targets]


def _write_times(switch: NameSwitched) -> pb.SwitchTimes:
    return pb.SwitchTimes(
        warm=_write_duration(switch.warm_s), switch=_write_duration(switch.switch_s)
    )


def _write_duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def _write_time(at_s: float) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromMicroseconds(round(at_s * 1e6))
    return timestamp
