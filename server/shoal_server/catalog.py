"""What there is and what is in memory, put together for whoever asks.

The registry knows the files, the pool knows the sessions; a model's state is both.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import InvalidInput, ModelNotFound, ShoalError
from shoal_server.loading import LoadedModel
from shoal_server.placement import Placement
from shoal_server.registry.manifest import ModelManifest, VersionManifest
from shoal_server.registry.registry import Registry
from shoal_server.registry.variants import Chosen
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Resident, State


class ModelState(StrEnum):
    """Where a model is in its life, as callers see it."""

    NOT_PREPARED = "not prepared"
    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


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


class Catalog:
    """Describes, loads and unloads models. Belongs to the event loop's thread."""

    def __init__(
        self, registry: Registry, pool: SessionPool[LoadedModel], placement: Placement
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._placement = placement

    async def all(self) -> list[ModelDescription]:
        """Every model of the repository, by name."""
        descriptions = []
        for name in await asyncio.to_thread(self._registry.repository.names):
            with suppress(ModelNotFound):  # removed since
                descriptions.append(await self._describe(ModelRef(name)))
        return descriptions

    async def get(self, text: str) -> ModelDescription:
        """One model, by `name`, `name@version` or nothing (the default).

        Raises:
            InvalidInput: It can not be a name.
            ModelNotFound: There is no such model or version.
        """
        return await self._describe(ModelRef.parse(text or self._registry.default_model))

    async def can_serve(self, text: str) -> bool | None:
        """Whether requests for a model would be served; None when there is none such."""
        try:
            description = await self.get(text)
        except (InvalidInput, ModelNotFound):
            return None
        return description.state not in (ModelState.NOT_PREPARED, ModelState.FAILED)

    async def load(self, text: str, *, device: str = "", pin: bool | None = None) -> ModelKey:
        """Bring a model into memory, whatever its name stands for now.

        Raises:
            ShoalError: It can not be loaded; says why.
        """
        ref = ModelRef.parse(text or self._registry.default_model)
        self._registry.forget(ref.name)
        version = await self._registry.resolve(text)
        resident = self._pool.get(version.key)
        current = resident.device if resident else None
        stays = resident is not None and resident.state in (State.LOADING, State.READY)
        await self._pool.load(
            version.key,
            self._placement.device_for(version, device, current),
            # A newcomer takes the pin of its manifest; one that stays keeps its own.
            pin=pin if pin is not None or stays else version.serving.pinned,
        )
        return version.key

    async def unload(self, text: str, *, force_after_s: float | None = None) -> None:
        """Take a model out of memory; returns when the memory is free.

        Raises:
            ModelNotFound: There is no such model or version.
        """
        version = await self._registry.resolve(text)
        await self._pool.unload(version.key, force_after_s=force_after_s)

    async def _describe(self, ref: ModelRef) -> ModelDescription:
        known = self._registry.known(str(ref))
        # What is served now is the truth, even where the disk has moved on.
        key = known.key if known else None
        files = await asyncio.to_thread(_read_files, self._registry, ref, key)
        resident = self._pool.get(files.key) if files.key else None
        state, reason = self._state(files, resident)
        served = resident.session.version if resident and resident.session else known
        return ModelDescription(
            name=ref.name,
            version=files.key.version if files.key else "",
            versions=files.versions,
            state=state,
            state_reason=reason,
            is_default=ref.name == ModelRef.parse(self._registry.default_model).name,
            model=files.model,
            manifest=files.manifest,
            chosen=served.chosen if served else files.chosen,
            resident=resident,
        )

    def _state(
        self, files: _Files, resident: Resident[LoadedModel] | None
    ) -> tuple[ModelState, str]:
        if resident is not None:
            return _STATES[resident.state], "pinned" if resident.pinned else ""
        if files.key is None:
            return ModelState.NOT_PREPARED, files.problem
        failure = self._pool.failure(files.key)
        if failure is not None:
            return ModelState.FAILED, failure.error.message
        if files.problem:
            return ModelState.FAILED, files.problem
        return ModelState.UNLOADED, ""


@dataclass(frozen=True, slots=True)
class _Files:
    """What the disk says of one model."""

    key: ModelKey | None
    versions: tuple[str, ...]
    model: ModelManifest
    manifest: VersionManifest | None
    chosen: Chosen | None
    problem: str


def _read_files(registry: Registry, ref: ModelRef, served: ModelKey | None) -> _Files:
    """In a thread. A model with unreadable files is described, not hidden."""
    repository = registry.repository
    versions = tuple(repository.versions(ref.name))
    if not versions and ref.name not in repository.names():
        raise ModelNotFound(f"there is no model {ref.name!r}", metadata={"model": ref.name})
    model, key, manifest, chosen, problem = ModelManifest(), served, None, None, ""
    try:
        model = repository.model_manifest(ref.name)
        key = key or repository.resolve(ref)
        manifest = repository.version_manifest(key.name, key.version)
        chosen = registry.choose(key, manifest, model.serving)
    except ModelNotFound as error:
        if ref.version is not None:
            raise
        problem = str(error) if versions else f"run `shoal models pull {ref.name}`"
        key = ModelKey(ref.name, versions[-1]) if versions else None
    except InvalidInput:
        raise
    except ShoalError as error:
        problem = error.message
        key = key or (ModelKey(ref.name, versions[-1]) if versions else None)
    return _Files(key, versions, model, manifest, chosen, problem)
