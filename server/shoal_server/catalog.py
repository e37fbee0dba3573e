"""What there is and what is in memory, put together for whoever asks.

The registry knows the files, the pool knows the sessions; a model's state is both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import (
    FailedPrecondition,
    InvalidInput,
    ModelNotFound,
    NotPersisted,
    ShoalError,
)
from shoal_server.lifecycle import LoadReason, ModelState
from shoal_server.loading import LoadedModel
from shoal_server.placement import Placement
from shoal_server.registry.accuracy import Accuracy
from shoal_server.registry.capabilities import Capabilities, Graph
from shoal_server.registry.index import ModelFiles, RepositoryIndex, read_files
from shoal_server.registry.labels import Deprecation
from shoal_server.registry.manifest import ModelManifest, VersionManifest
from shoal_server.registry.memory_pins import MemoryPins
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.scopes import OtherVersions, Scope, read_deregistered
from shoal_server.registry.variants import Chosen
from shoal_server.residency.mended import Mended
from shoal_server.residency.model_states import ModelStates
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Departure, Resident


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """One model at one version."""

    name: str
    version: str
    """Empty when none is prepared."""
    versions: tuple[str, ...]
    state: ModelState
    state_reason: str
    serves: bool
    """Whether a request for it would be tried; faults and deprecations do not hinder that."""
    is_default: bool
    is_meant: bool
    """Whether the bare name means this version."""
    model: ModelManifest
    manifest: VersionManifest | None
    chosen: Chosen | None
    """Which of the version's graphs is served."""
    capabilities: Capabilities | None
    """Of this version; None when it can not be read."""
    devices: tuple[str, ...]
    """Those that what is served can be run on."""
    graphs: tuple[tuple[Graph, tuple[str, ...]], ...]
    """Every graph of this version, its own first, with the devices that it can be run on."""
    resident: Resident[LoadedModel] | None
    served_as: tuple[str, ...]
    """Names, `name@version` apart, by which requests get this version now."""
    pinned_version: str
    """What the bare name is pinned to; empty: nothing."""
    tags: tuple[str, ...]
    """Of the model and of this version."""
    deprecation: Deprecation | None
    accuracy: Accuracy | None
    """When it was verified last; None: it never was."""
    idle_left_s: float | None
    """Until it is released for being idle; None: never, or it is not in memory."""
    departure: Departure | None
    """Why and when it left memory last."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What is new in the repository since the last look; names, sorted."""

    added: Sequence[str]
    removed: Sequence[str]
    changed: Sequence[str]
    outdated: Sequence[str]
    """Served from memory by another version than they would mean now."""


class ListedModel(NamedTuple):  # not a dataclass: a thousand are made for each list
    """A model to choose among others; what it is asked for is looked up then."""

    catalog: Catalog
    name: str
    files: ModelFiles
    is_meant: bool = True
    """Whether the bare name means this version."""

    @property
    def resident(self) -> Resident[LoadedModel] | None:
        """Its session, where it has one."""
        return self.catalog.resident(self.files)

    @property
    def state(self) -> ModelState:
        """Where it is in its life."""
        return self.catalog.state(self.name, self.files)

    @property
    def devices(self) -> tuple[str, ...]:
        """Those that what is served can be run on."""
        return self.catalog.devices(self.files)

    @property
    def tags(self) -> tuple[str, ...]:
        """Its own and those of its version."""
        return self.catalog.tags(self.name, self.files)


class Catalog:
    """Describes, loads and unloads models. Belongs to the event loop's thread."""

    def __init__(
        self,
        registry: Registry,
        pool: SessionPool[LoadedModel],
        placement: Placement,
        pins: MemoryPins,
        states: ModelStates,
        outcomes: Mapping[ModelKey, Accuracy] | None = None,
        mended: Mended | None = None,
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._placement = placement
        self._pins = pins
        self._states = states
        self._outcomes = {} if outcomes is None else outcomes
        self._mended = mended
        self.index = RepositoryIndex(registry)
        """What the disk says; who changes what there is tells it."""
        self._others = OtherVersions(registry.prepared)

    async def listed(self, scope: Scope = Scope.NAMES) -> list[ListedModel]:
        """Every model of the repository, ready to be chosen among."""
        registry = self._registry
        if scope is Scope.DEREGISTERED:
            refs = [ModelRef(name) for name in sorted(registry.deregistered)]
            known = [(ref, registry.pinned(ref), registry.found_of(ref.name)) for ref in refs]
            read = await asyncio.to_thread(read_deregistered, registry.prepared, known)
            return [ListedModel(self, name, files, False) for name, files in read]
        await self._forget_mended()
        found = await self.index.look()
        listed = [ListedModel(self, name, files) for name, files in found.models.items()]
        if scope is Scope.EVERY_VERSION:
            others = await self._others.look(found.models)
            listed += [ListedModel(self, k.name, v.files, False) for k, v in others.items()]
        return listed

    async def discover(self) -> Discovery:
        """Read the repository anew; names that no session serves mean what is there now."""
        await self._forget_mended()
        scan = await self.index.look_anew()
        before, now = scan.before, scan.now
        for name, files in now.items():
            self._states.came(name, files.versions)
        both = [name for name in now if name in before]
        changed = [name for name in both if now[name] != before[name]]
        removed = [name for name in before if name not in now]
        outdated = []
        # Also names that were asked for before the first look.
        for name in sorted({*now, *removed}):
            meant = self._registry.meanings.bare(name)
            if meant is None or (name in now and now[name].key == meant.key):
                continue
            if self._pool.get(meant.key) is not None:
                outdated.append(name)
            else:
                self._registry.forget(name)
        added = [name for name in now if name not in before]
        # Also the same version may be another: it was prepared anew.
        in_memory = {resident.key.name for resident in self._pool.residents()}
        self._registry.forget(*(name for name in (*added, *changed) if name not in in_memory))
        return Discovery(added, removed, changed, outdated)

    async def describe(self, listed: Sequence[ListedModel]) -> list[ModelDescription]:
        """Models as they are now, those that were removed since left out."""
        found = await self.index.look_inside([each.name for each in listed if each.is_meant])
        described = []
        for name, files, is_meant in ((each.name, each.files, each.is_meant) for each in listed):
            now = found.get(name) if is_meant else files
            if now is None:
                continue
            known = self._registry.meanings.bare(name) if is_meant else self._known(now.key)
            described.append(self._describe_files(ModelRef(name), now, known, is_meant=is_meant))
        return described

    async def all(self) -> list[ModelDescription]:
        """Every model of the repository, by name."""
        return await self.describe(await self.listed())

    def resident(self, files: ModelFiles) -> Resident[LoadedModel] | None:
        """The session of a model, where it has one."""
        return self._pool.get(files.key) if files.key else None

    def state(self, name: str, files: ModelFiles) -> ModelState:
        """Where a model is in its life."""
        return self._states.state(files.key or ModelKey(name, ""), files.problem)

    def devices(self, files: ModelFiles) -> tuple[str, ...]:
        """Those that a model, as it would be served, can be run on."""
        return self._placement.devices_of(files.chosen) if files.chosen else ()

    def tags(self, name: str, files: ModelFiles) -> tuple[str, ...]:
        """Of a model and of the version that its name means."""
        return self._registry.labelled.tags_of(files.key or ModelKey(name, ""))

    async def get(self, text: str) -> ModelDescription:
        """One model, by `name`, `name@version`, alias or nothing (the default).

        Of an alias of several versions: the one with most of the traffic.

        Raises:
            InvalidInput: It can not be a name.
            ModelNotFound: There is no such model or version.
        """
        ref = max(self._registry.targets(text), key=lambda each: each.weight).ref
        await self._forget_mended(ref.name)
        return await self._describe(ref)

    async def can_serve(self, text: str) -> bool | None:
        """Whether requests for a model would be served; None when there is none such."""
        try:
            description = await self.get(text)
        except (InvalidInput, ModelNotFound):
            return None
        return description.serves

    async def load(
        self,
        text: str,
        *,
        device: str = "",
        pin: bool | None = None,
        why: LoadReason = LoadReason.ASKED,
    ) -> ModelKey:
        """Bring a model into memory, whatever its name stands for now.

        Until it is there, requests for the name get what it stood for before. A pin is on
        disk when this returns.

        Returns:
            The version; of an alias of several, the first.

        Raises:
            ShoalError: It can not be loaded; says why.
        """
        targets = self._registry.targets(text)
        before = self._registry.meanings.bare(text or self._registry.default_model)
        versions = [await self._registry.look_up(target.ref) for target in targets]
        for version in versions:
            await self._load(version, device, pin, why)
        self._registry.renew(text, targets, versions, before)
        return versions[0].key

    async def _load(
        self, version: ModelVersion, device: str, pin: bool | None, why: LoadReason
    ) -> None:
        resident = self._pool.get(version.key)
        current = resident.device if resident else None
        before = resident.pinned if resident else version.serving.pinned
        await self._pool.load(
            version.key,
            self._placement.device_for(version, device, current),
            pin=True if pin else None,
            # A newcomer takes the pin of its manifest; one that stays keeps its own.
            pinned=version.serving.pinned,
            why=why,
        )
        if pin is not None:
            await self._pin(version, pin, before)

    async def unload(self, text: str, *, force_after_s: float | None = None) -> None:
        """Take a model out of memory, of an alias all that it means; returns when it is free.

        Raises:
            ModelNotFound: There is no such model or version.
        """
        for target in self._registry.targets(text):
            key = await self._key_of(target.ref)
            await self._pool.unload(key, force_after_s=force_after_s)
            await self._pins.forget(key)

    async def _key_of(self, ref: ModelRef) -> ModelKey:
        """The version that is meant; one in memory is known, though its files be gone."""
        if ref.version is not None:
            key = ModelKey(ref.name, ref.version)
            if self._pool.get(key) is not None:
                return key
        return (await self._registry.resolve(str(ref))).key

    async def pin(self, text: str, pinned: bool) -> None:
        """Keep a model in memory, of an alias all that it means, or let it go again.

        That is on disk when this returns.

        Raises:
            ModelNotFound: There is no such model or version.
            FailedPrecondition: It is to be pinned and is not in memory.
        """
        for target in self._registry.targets(text):
            version = await self._registry.resolve(str(target.ref))
            resident = self._pool.get(version.key)
            await self._pin(version, pinned, before=resident is not None and resident.pinned)

    async def _pin(self, version: ModelVersion, pinned: bool, before: bool) -> None:
        key = version.key
        if pinned:  # at once: it must not leave while that is written
            self._pool.pin(key, True)
        try:
            await self._pins.remember(key, pinned, by_manifest=version.serving.pinned)
        except NotPersisted:
            if pinned and not before:
                self._pool.pin(key, False)
            raise
        # Others may have been before or behind this one: in memory as on disk the last counts.
        with suppress(FailedPrecondition):  # it was unpinned meanwhile, and has left
            self._pool.pin(key, pinned)

    async def _describe(self, ref: ModelRef) -> ModelDescription:
        self._registry.check_registered(ref.name)
        known = self._registry.meanings.known(str(ref))
        # What is served now is the truth, even where the disk has moved on.
        key = known.key if known else None
        registry = self._registry
        found = registry.found_of(ref.name)
        files = await asyncio.to_thread(
            read_files, registry.prepared, ref, registry.pinned(ref), key, found
        )
        is_meant = ref.version is None or await self._is_meant(ref)
        return self._describe_files(ref, files, known, is_meant=is_meant)

    async def _is_meant(self, ref: ModelRef) -> bool:
        """Whether a model's bare name means this version, as it would if it were asked for."""
        meant = self._registry.meanings.bare(ref.name)
        if meant is not None:
            return meant.key.version == ref.version
        try:
            pinned = self._registry.pins.get(ref.name)
            return ref.version == (pinned or await self._registry.default_version(ref.name))
        except ShoalError:  # it means nothing
            return False

    def _known(self, key: ModelKey | None) -> ModelVersion | None:
        return self._registry.meanings.known(str(key)) if key else None

    def _describe_files(
        self, ref: ModelRef, files: ModelFiles, known: ModelVersion | None, *, is_meant: bool
    ) -> ModelDescription:
        resident = self._pool.get(files.key) if files.key else None
        state, reason = self._states.look(files.key or ModelKey(ref.name, ""), files.problem)
        served = resident.session.version if resident and resident.session else known
        chosen = served.chosen if served else files.chosen
        return ModelDescription(
            name=ref.name,
            version=files.key.version if files.key else "",
            versions=files.versions,
            state=state,
            state_reason=reason,
            serves=self._serves(files),
            is_default=self._is_default(ref.name, files.key, is_meant),
            is_meant=is_meant and files.key is not None,
            model=files.model,
            manifest=served.manifest if served and files.manifest else files.manifest,
            chosen=chosen,
            capabilities=files.capabilities,
            devices=self._placement.devices_of(chosen) if chosen else (),
            graphs=self._graphs(files),
            resident=resident,
            served_as=tuple(self._registry.names_of(files.key)) if files.key else (),
            pinned_version=self._registry.pins.get(ref.name, ""),
            tags=self._registry.labelled.tags_of(files.key or ModelKey(ref.name, "")),
            deprecation=self._registry.labelled.deprecation_of(files.key or ModelKey(ref.name, "")),
            idle_left_s=self._pool.idle_left_s(resident) if resident else None,
            accuracy=self._outcomes.get(files.key) if files.key else None,
            departure=self._pool.departure(files.key) if files.key else None,
        )

    async def _forget_mended(self, name: str = "") -> None:
        if self._mended is not None:
            await self._mended.forget(name)

    def _graphs(self, files: ModelFiles) -> tuple[tuple[Graph, tuple[str, ...]], ...]:
        graphs = files.capabilities.graphs if files.capabilities else ()
        return tuple((graph, self._placement.devices_of(graph)) for graph in graphs)

    def _is_default(self, name: str, key: ModelKey | None, is_meant: bool) -> bool:
        for ref in (target.ref for target in self._registry.targets("")):
            is_this = is_meant if ref.version is None else key == ModelKey(name, ref.version)
            if ref.name == name and is_this:
                return True
        return False

    def _serves(self, files: ModelFiles) -> bool:
        if files.key is None or self._pool.get(files.key) is not None:
            return files.key is not None
        return self._pool.failure(files.key) is None and not files.problem
