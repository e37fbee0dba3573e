"""What there is and what is in memory, put together for whoever asks.

The registry knows the files, the pool knows the sessions; a model's state is both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import InvalidInput, ModelNotFound
from shoal_server.lifecycle import LoadReason, ModelState
from shoal_server.loading import LoadedModel
from shoal_server.placement import Placement
from shoal_server.registry.index import ModelFiles, RepositoryIndex, read_files
from shoal_server.registry.labels import Deprecation
from shoal_server.registry.manifest import ModelManifest, VersionManifest
from shoal_server.registry.registry import ModelVersion, Registry
from shoal_server.registry.variants import Chosen
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Departure, Resident, State

_STATES = {
    State.LOADING: ModelState.LOADING,
    State.READY: ModelState.READY,
    State.LEAVING: ModelState.UNLOADING,
    State.CLOSING: ModelState.UNLOADING,
}


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """One model at one version."""

    name: str
    version: str
    """Empty when none is prepared."""
    versions: tuple[str, ...]
    state: ModelState
    state_reason: str
    is_default: bool
    model: ModelManifest
    manifest: VersionManifest | None
    chosen: Chosen | None
    """Which of the version's graphs is served."""
    resident: Resident[LoadedModel] | None
    served_as: tuple[str, ...]
    """Names, `name@version` apart, by which requests get this version now."""
    pinned_version: str
    """What the bare name is pinned to; empty: nothing."""
    tags: tuple[str, ...]
    """Of the model and of this version."""
    deprecation: Deprecation | None
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


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model to choose among others; what it is asked for is looked up then."""

    _catalog: Catalog
    name: str
    files: ModelFiles

    @property
    def resident(self) -> Resident[LoadedModel] | None:
        """Its session, where it has one."""
        return self._catalog.resident(self.files)

    @property
    def state(self) -> ModelState:
        """Where it is in its life."""
        return self._catalog.state(self.files)

    @property
    def tags(self) -> tuple[str, ...]:
        """Its own and those of its version."""
        return self._catalog.tags(self.name, self.files)


class Catalog:
    """Describes, loads and unloads models. Belongs to the event loop's thread."""

    def __init__(
        self, registry: Registry, pool: SessionPool[LoadedModel], placement: Placement
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._placement = placement
        self._index = RepositoryIndex(registry)

    async def listed(self) -> list[ListedModel]:
        """Every model of the repository, by name, ready to be chosen among."""
        found = await self._index.look()
        return [ListedModel(self, name, files) for name, files in found.models.items()]

    async def discover(self) -> Discovery:
        """Read the repository anew; names that no session serves mean what is there now."""
        scan = await self._index.look_anew()
        before, now = scan.before, scan.now
        both = [name for name in now if name in before]
        changed = [name for name in both if now[name] != before[name]]
        removed = [name for name in before if name not in now]
        outdated = []
        # Also names that were asked for before the first look.
        for name in sorted({*now, *removed}):
            meant = self._registry.bare(name)
            if meant is None or (name in now and now[name].key == meant.key):
                continue
            if self._pool.get(meant.key) is not None:
                outdated.append(name)
            else:
                self._registry.forget(name)
        added = [name for name in now if name not in before]
        return Discovery(added, removed, changed, outdated)

    async def describe(self, listed: Sequence[ListedModel]) -> list[ModelDescription]:
        """Models as they are now, those that were removed since left out."""
        found = await self._index.look_inside([model.name for model in listed])
        return [
            self._describe_files(ModelRef(name), files, self._registry.bare(name))
            for name, files in found.items()
        ]

    async def all(self) -> list[ModelDescription]:
        """Every model of the repository, by name."""
        return await self.describe(await self.listed())

    def resident(self, files: ModelFiles) -> Resident[LoadedModel] | None:
        """The session of a model, where it has one."""
        return self._pool.get(files.key) if files.key else None

    def state(self, files: ModelFiles) -> ModelState:
        """Where a model is in its life."""
        return self._state(files, self.resident(files))[0]

    def tags(self, name: str, files: ModelFiles) -> tuple[str, ...]:
        """Of a model and of the version that its name means."""
        return self._registry.tags_of(files.key or ModelKey(name, ""))

    async def get(self, text: str) -> ModelDescription:
        """One model, by `name`, `name@version`, alias or nothing (the default).

        Of an alias of several versions: the one with most of the traffic.

        Raises:
            InvalidInput: It can not be a name.
            ModelNotFound: There is no such model or version.
        """
        targets = self._registry.targets(text)
        return await self._describe(max(targets, key=lambda each: each.weight).ref)

    async def can_serve(self, text: str) -> bool | None:
        """Whether requests for a model would be served; None when there is none such."""
        try:
            description = await self.get(text)
        except (InvalidInput, ModelNotFound):
            return None
        return description.state not in (ModelState.NOT_PREPARED, ModelState.FAILED)

    async def load(
        self,
        text: str,
        *,
        device: str = "",
        pin: bool | None = None,
        why: LoadReason = LoadReason.ASKED,
    ) -> ModelKey:
        """Bring a model into memory, whatever its name stands for now.

        Until it is there, requests for the name get what it stood for before.

        Returns:
            The version; of an alias of several, the first.

        Raises:
            ShoalError: It can not be loaded; says why.
        """
        targets = self._registry.targets(text)
        versions = [await self._registry.look_up(target.ref) for target in targets]
        for version in versions:
            await self._load(version, device, pin, why)
        self._registry.renew(text, targets, versions)
        return versions[0].key

    async def _load(
        self, version: ModelVersion, device: str, pin: bool | None, why: LoadReason
    ) -> None:
        resident = self._pool.get(version.key)
        current = resident.device if resident else None
        stays = resident is not None and resident.state in (State.LOADING, State.READY)
        await self._pool.load(
            version.key,
            self._placement.device_for(version, device, current),
            # A newcomer takes the pin of its manifest; one that stays keeps its own.
            pin=pin if pin is not None or stays else version.serving.pinned,
            why=why,
        )

    async def unload(self, text: str, *, force_after_s: float | None = None) -> None:
        """Take a model out of memory, of an alias all that it means; returns when it is free.

        Raises:
            ModelNotFound: There is no such model or version.
        """
        for target in self._registry.targets(text):
            version = await self._registry.resolve(str(target.ref))
            await self._pool.unload(version.key, force_after_s=force_after_s)

    async def pin(self, text: str, pinned: bool) -> None:
        """Keep a model in memory, of an alias all that it means, or let it go again.

        Raises:
            ModelNotFound: There is no such model or version.
            FailedPrecondition: It is to be pinned and is not in memory.
        """
        for target in self._registry.targets(text):
            version = await self._registry.resolve(str(target.ref))
            self._pool.pin(version.key, pinned)

    async def _describe(self, ref: ModelRef) -> ModelDescription:
        known = self._registry.known(str(ref))
        # What is served now is the truth, even where the disk has moved on.
        key = known.key if known else None
        files = await asyncio.to_thread(
            read_files, self._registry, ref, self._registry.pinned(ref), key
        )
        return self._describe_files(ref, files, known)

    def _describe_files(
        self, ref: ModelRef, files: ModelFiles, known: ModelVersion | None
    ) -> ModelDescription:
        resident = self._pool.get(files.key) if files.key else None
        state, reason = self._state(files, resident)
        served = resident.session.version if resident and resident.session else known
        return ModelDescription(
            name=ref.name,
            version=files.key.version if files.key else "",
            versions=files.versions,
            state=state,
            state_reason=reason,
            is_default=ref.name in self._default_names(),
            model=files.model,
            manifest=files.manifest,
            chosen=served.chosen if served else files.chosen,
            resident=resident,
            served_as=tuple(self._registry.names_of(files.key)) if files.key else (),
            pinned_version=self._registry.pins.get(ref.name, ""),
            tags=self._registry.tags_of(files.key or ModelKey(ref.name, "")),
            deprecation=self._registry.deprecation_of(files.key or ModelKey(ref.name, "")),
            idle_left_s=self._pool.idle_left_s(resident) if resident else None,
            departure=self._pool.departure(files.key) if files.key else None,
        )

    def _default_names(self) -> set[str]:
        return {target.ref.name for target in self._registry.targets("")}

    def _state(
        self, files: ModelFiles, resident: Resident[LoadedModel] | None
    ) -> tuple[ModelState, str]:
        if resident is not None:
            return _STATES[resident.state], _reason(resident)
        if files.key is None:
            return ModelState.NOT_PREPARED, files.problem
        failure = self._pool.failure(files.key)
        if failure is not None:
            return ModelState.FAILED, failure.error.message
        if files.problem:
            return ModelState.FAILED, files.problem
        departure = self._pool.departure(files.key)
        return ModelState.UNLOADED, str(departure.why) if departure else ""


def _reason(resident: Resident[LoadedModel]) -> str:
    """Why it is in its state, in the words that events have for it."""
    if resident.why_unloading is not None:
        return str(resident.why_unloading)
    if resident.state is State.LOADING:
        return str(resident.why_loaded)
    return "pinned" if resident.pinned else ""
