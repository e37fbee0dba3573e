"""What a caller's name for a model stands for, without asking the disk each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import structlog

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelNotFound, ShoalError
from shoal_server.registry.aliases import Alias
from shoal_server.registry.claims import Claims
from shoal_server.registry.findings import KnownBad, default_sound
from shoal_server.registry.labels import Deprecation, Labels
from shoal_server.registry.manifest import Precision, Serving, VersionManifest
from shoal_server.registry.remembered import NO_NAMES, RememberedNames
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.routes import Share, Split
from shoal_server.registry.variants import Chosen, choose

log = structlog.get_logger(__name__)

NO_LABELS = Labels()
NOTHING_FOUND: KnownBad = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A prepared version of a model: all that serving it takes to know."""

    key: ModelKey
    manifest: VersionManifest
    serving: Serving
    folder: Path
    chosen: Chosen
    """The precision that is served, and its files."""
    deprecation: Deprecation | None = None
    """Of the version, else of the model."""

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / self.chosen.graph

    @property
    def files(self) -> Mapping[str, str]:
        """All that a session reads: path below `folder` to SHA-256."""
        return self.chosen.files

    @property
    def file_bytes(self) -> int:
        """Size of what a session reads."""
        return self.chosen.file_bytes


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """A model behind a name, and its part of the name's traffic."""

    ref: ModelRef
    weight: int


class Registry:
    """Names of models to versions. Belongs to the event loop's thread.

    A name is an alias, or a model's, with a version or without; the latter means the
    version that it is pinned to, else the manifest's or the newest not known to be bad.

    What a name stands for is read from the repository once and then kept, so that
    requests cost no disk access and a version that appears meanwhile changes
    nothing until `forget` (an explicit load, or a failed one) asks again. While a session
    serves a version, names mean it with the manifests that the session was made of.
    """

    def __init__(
        self,
        repository: ModelRepository,
        default_model: str,
        precision: Precision | Literal["auto"] = "fp32",
        *,
        gpu: bool = False,
        names: RememberedNames = NO_NAMES,
        found: Mapping[str, KnownBad] = MappingProxyType({}),
    ) -> None:
        """Nothing is read yet.

        Args:
            repository: The files.
            default_model: What an empty name stands for.
            precision: Of models that ask for none and have it; auto: fp16 on a GPU, else
                fp32.
            gpu: Whether models that ask for no device run on one.
            names: Aliases and pins, from the store.
            found: Which versions are known to be bad, by model; looked at each time.
        """
        self.repository = repository
        self.default_model = default_model
        self.precision = precision
        self.found = found
        """Which versions are known to be bad, by model."""
        self._gpu = gpu
        self._aliases = dict(names.aliases)
        self._pins = dict(names.pins)
        self._labels = dict(names.labels)
        self._deregistered = set(names.deregistered)
        self.claims = Claims()
        """Held by who writes that a name means a model, or that a model goes."""
        # Of versions; None: to be made anew, since an alias was changed.
        self._aliases_of: dict[ModelKey, list[str]] | None = None
        self._by_text: dict[str, ModelVersion] = {}
        self._splits: dict[str, Split[ModelVersion]] = {}
        # What a session is made of next.
        self._by_key: dict[ModelKey, ModelVersion] = {}
        self.served: Callable[[ModelKey], ModelVersion | None] = lambda key: None
        """What the session of a version was made of; None: it has none that goes on."""
        # Counts what made answers of the disk stale that are still on their way.
        self._changes = 0

    # -- looking up -----------------------------------------------------------

    def known(self, text: str, routing_key: str = "") -> ModelVersion | None:
        """What `text` stands for, if that was asked before.

        Args:
            text: As `resolve` takes it.
            routing_key: Where versions share the traffic of an alias, the same key
                always gets the same one; empty: any.
        """
        version = self._by_text.get(text)
        if version is not None:
            return version
        split = self._splits.get(text)
        return None if split is None else split.choose(routing_key)

    def bare(self, name: str) -> ModelVersion | None:
        """What a model's bare name stands for, if that was asked before.

        Nothing where an alias has the name: that was made before the model came.
        """
        version = self._by_text.get(name)
        return version if version is not None and version.key.name == name else None

    async def resolve(self, text: str, routing_key: str = "") -> ModelVersion:
        """What `name`, `name@version`, an alias or nothing (the default model) stands for.

        Raises:
            InvalidInput: It can not be a name.
            ModelNotFound: The repository has no such model or version.
            ModelLoadFailed: A manifest can not be read.
            FailedPrecondition: It is to be served in a precision that it does not have.
        """
        known = self.known(text, routing_key)
        if known is not None:
            return known
        targets = self.targets(text)
        changes = self._changes
        name = text or self.default_model
        found = await self._look_up_some(targets)
        # Unless the name was given another meaning meanwhile, or forgotten.
        if changes == self._changes:
            self._note(name, [target for target, _ in found], [version for _, version in found])
        for _, version in found:
            self.check_registered(version.key.name)
        known = self.known(text, routing_key)
        if known is not None:
            return known
        return _shared(name, found).choose(routing_key) if len(found) > 1 else found[0][1]

    async def _look_up_some(
        self, targets: Sequence[NamedTarget]
    ) -> list[tuple[NamedTarget, ModelVersion]]:
        """Those of an alias's targets that are there: one that is gone takes no others along.

        Raises:
            ShoalError: None of them is; why the first is not.
        """
        found: list[tuple[NamedTarget, ModelVersion]] = []
        missing: list[ShoalError] = []
        for target in targets:
            try:
                found.append((target, self._current(await self.look_up(target.ref))))
            except ShoalError as error:
                missing.append(error)
        if not found:
            raise missing[0]
        for each in missing:
            log.warning("alias_target_left_out", error=each.message)
        return found

    async def look_up(self, ref: ModelRef) -> ModelVersion:
        """What the disk says now of a model; changes nothing for requests.

        Raises:
            ShoalError: As `resolve`.
        """
        self.check_registered(ref.name)
        version = await asyncio.to_thread(self._read, self.pinned(ref), self.found_of(ref.name))
        self.check_registered(ref.name)  # it may have been deregistered meanwhile
        version = replace(version, deprecation=self.deprecation_of(version.key))
        wanted, used = self.precision, version.chosen.precision
        if version.serving.precision is None and used != wanted != "auto":
            log.info("precision_fallback", model=str(version.key), wanted=wanted, used=used)
        if (served := self.served(version.key)) is not None:
            self._by_key.setdefault(version.key, served)
        else:
            self._by_key[version.key] = version
        return version

    def open_next(self, version: ModelVersion) -> None:
        """Let the next session of a version be made of this, though another one serves."""
        self._by_key[version.key] = version

    def _current(self, version: ModelVersion) -> ModelVersion:
        """What names mean by a version: what serves, else what the next session is made of."""
        served = self.served(version.key)
        if served is None:
            # It may have been labelled since it was looked up.
            return self._by_key.get(version.key, version)
        return replace(served, deprecation=self.deprecation_of(version.key))

    def version(self, key: ModelKey) -> ModelVersion:
        """A version that was resolved before.

        Raises:
            ModelNotFound: It was not, or was forgotten.
        """
        version = self._by_key.get(key)
        if version is None:
            raise ModelNotFound(f"there is no model {key}")
        return version

    def targets(self, text: str) -> tuple[NamedTarget, ...]:
        """The models behind a name: an alias's, each with its weight, or the one named.

        Raises:
            InvalidInput: It can not be a name.
        """
        text = text or self.default_model
        alias = self._aliases.get(text)
        if alias is None:
            return (NamedTarget(ModelRef.parse(text), 1),)
        return tuple(
            NamedTarget(ModelRef(each.key.name, each.key.version), each.weight)
            for each in alias.targets
        )

    def pinned(self, ref: ModelRef) -> ModelRef:
        """`ref` itself, or with the version that the bare name is pinned to."""
        pinned = self._pins.get(ref.name)
        return ModelRef(ref.name, pinned) if ref.version is None and pinned else ref

    async def default_version(self, name: str) -> str:
        """What a model's bare name would mean if it were pinned to nothing.

        Raises:
            ModelNotFound: There is no such model, or no version of it.
            ModelLoadFailed: Its `model.toml` can not be read.
        """
        return await asyncio.to_thread(self._default, name, self.found_of(name))

    async def passed_over(self, name: str) -> list[str]:
        """The versions newer than that, which are known to be bad; the newest first."""
        return await asyncio.to_thread(self._passed_over, name, self.found_of(name))

    def found_of(self, name: str) -> KnownBad:
        """The versions of a model that are known to be bad."""
        return self.found.get(name, NOTHING_FOUND)

    # -- names ---------------------------------------------------------------

    @property
    def aliases(self) -> Mapping[str, Alias]:
        """Every alias, by name."""
        return self._aliases

    @property
    def pins(self) -> Mapping[str, str]:
        """The versions that names of models are pinned to."""
        return self._pins

    def names_of(self, key: ModelKey) -> list[str]:
        """The names, `name@version` apart, by which requests get a version now."""
        if self._aliases_of is None:
            self._aliases_of = {}
            for alias in self._aliases.values():
                for target in alias.targets:
                    self._aliases_of.setdefault(target.key, []).append(alias.name)
        names = self._aliases_of.get(key, [])
        bare = self._by_text.get(key.name)
        return [*names, key.name] if bare is not None and bare.key == key else list(names)

    def point(self, alias: Alias, versions: Sequence[ModelVersion]) -> None:
        """From now on, `alias` means `versions`, in the order of its targets."""
        self._aliases[alias.name] = alias
        self._aliases_of = None
        self._drop(alias.name)
        self._note(alias.name, self.targets(alias.name), versions)

    def remove_alias(self, name: str) -> None:
        """From now on, `name` means nothing, or a model of that name."""
        del self._aliases[name]
        self._aliases_of = None
        self._drop(name)

    def pin(self, name: str, version: str | None, now: ModelVersion) -> None:
        """From now on, a model's bare name means `now`.

        Args:
            name: Of the model.
            version: What it is pinned to; None: not any longer.
            now: What it means by that.
        """
        if version is None:
            self._pins.pop(name, None)
        else:
            self._pins[name] = version
        if name not in self._aliases:
            self._drop(name)
            self._note(name, self.targets(name), [now])

    def renew(
        self, text: str, targets: Sequence[NamedTarget], versions: Sequence[ModelVersion]
    ) -> None:
        """From now on, `text` means what `look_up` said of its targets a while ago.

        Other names of the same versions follow. Does nothing when `text` was given other
        targets meanwhile.
        """
        if self.targets(text) != tuple(targets):
            return
        self._changes += 1
        for fresh in versions:
            self._rename(self._current(fresh))
        self._note(text or self.default_model, targets, versions)

    def adopt(self, version: ModelVersion) -> None:
        """From now on, every name of a version means it with these manifests and files."""
        self._changes += 1
        self._replace(replace(version, deprecation=self.deprecation_of(version.key)))

    def forget(self, *names: str) -> None:
        """Read the repository again when one of these models' names is asked for next."""
        self._changes += 1
        models = frozenset(names)
        for text, version in list(self._by_text.items()):
            if version.key.name in models:
                del self._by_text[text]
        for alias in self._aliases.values():
            # By its targets, not by what it means: one that was left out may be back.
            if not models.isdisjoint(target.key.name for target in alias.targets):
                self._drop(alias.name)

    def forget_version(self, key: ModelKey) -> None:
        """As `forget`, for the names that mean one version, and for no others."""
        self._changes += 1
        for text, version in list(self._by_text.items()):
            if version.key == key:
                del self._by_text[text]
        for alias in self._aliases.values():
            if any(target.key == key for target in alias.targets):
                self._drop(alias.name)

    def _replace(self, fresh: ModelVersion) -> None:
        if fresh.key.name in self._deregistered:
            return
        self._by_key[fresh.key] = fresh
        self._rename(fresh)

    def _rename(self, fresh: ModelVersion) -> None:
        """Let every name that means this version mean it as it is here."""
        name, version = fresh.key.name, fresh.key.version
        same = [
            text
            for text, known in self._by_text.items()
            if known.key.name == name and known.key.version == version
        ]
        self._by_text |= dict.fromkeys(same, fresh)
        for name, split in self._splits.items():
            self._splits[name] = split.replaced(str(fresh.key), fresh)

    def _drop(self, text: str) -> None:
        self._changes += 1
        self._clear(text)

    def _clear(self, text: str) -> None:
        for each in self._synonyms(text):
            self._by_text.pop(each, None)
            self._splits.pop(each, None)

    def _note(
        self, text: str, targets: Sequence[NamedTarget], versions: Sequence[ModelVersion]
    ) -> None:
        if any(each.key.name in self._deregistered for each in versions):
            return
        versions = [self._current(each) for each in versions]
        self._clear(text)  # with a target more than before it is shared now, or the reverse
        if len(versions) == 1:
            self._by_text |= dict.fromkeys(self._synonyms(text), versions[0])
            return
        split = _shared(text, zip(targets, versions, strict=True))
        self._splits |= dict.fromkeys(self._synonyms(text), split)

    def _synonyms(self, text: str) -> tuple[str, ...]:
        """`text`, and the empty name where that means the same."""
        return (self.default_model, "") if text in (self.default_model, "") else (text,)

    # -- models that are not to be served ----------------------------------------

    @property
    def deregistered(self) -> frozenset[str]:
        """Names of the models that are neither served nor listed, though they are there."""
        return frozenset(self._deregistered)

    def check_registered(self, name: str) -> None:
        """Refuse a model that was deregistered.

        Raises:
            ModelNotFound: It was.
        """
        if name in self._deregistered:
            raise ModelNotFound(
                f"model {name!r} is deregistered; `shoal models register {name}` brings it back",
                metadata={"model": name},
            )

    def deregister(self, name: str) -> None:
        """From now on, no name means a version of this model, and none of them is loaded."""
        self._deregistered.add(name)
        self.forget(name)
        self._by_key = {key: each for key, each in self._by_key.items() if key.name != name}

    def register(self, name: str) -> None:
        """From now on, this model's names mean its versions again."""
        self._deregistered.discard(name)

    # -- labels ----------------------------------------------------------------

    def labels_of(self, ref: ModelRef) -> Labels:
        """What is said of a model, or of one version; nothing of its own for most."""
        return self._labels.get(str(ref), NO_LABELS)

    def tags_of(self, key: ModelKey) -> tuple[str, ...]:
        """Of a version: its own and its model's, sorted."""
        own, models = self._labels.get(str(key)), self._labels.get(key.name)
        if own is None or models is None:
            return (own or models or NO_LABELS).tags
        return tuple(sorted({*own.tags, *models.tags}))

    def deprecation_of(self, key: ModelKey) -> Deprecation | None:
        """Of a version: its own, else its model's."""
        for name in (str(key), key.name):
            labels = self._labels.get(name, NO_LABELS)
            if labels.deprecation is not None:
                return labels.deprecation
        return None

    def label(self, ref: ModelRef, labels: Labels) -> None:
        """From now on, this is said of a model or a version."""
        if labels == NO_LABELS:
            self._labels.pop(str(ref), None)
        else:
            self._labels[str(ref)] = labels
        for key, version in list(self._by_key.items()):
            if key.name == ref.name:
                self._by_key[key] = replace(version, deprecation=self.deprecation_of(key))
                self._rename(self._current(version))

    def versions_known(self, name: str) -> list[ModelKey]:
        """The versions of a model that were looked up."""
        return [key for key in self._by_key if key.name == name]

    async def check_exists(self, ref: ModelRef) -> None:
        """Find out whether there is such a model, or version.

        Raises:
            ModelNotFound: There is not.
        """
        self.check_registered(ref.name)
        if ref.version is not None:
            await asyncio.to_thread(self.repository.version_folder, ref.name, ref.version)
        elif not await asyncio.to_thread(self.repository.has, ref.name):
            raise ModelNotFound(f"there is no model {ref.name!r}", metadata={"model": ref.name})

    # -- the disk --------------------------------------------------------------

    def choose(self, key: ModelKey, manifest: VersionManifest, serving: Serving) -> Chosen:
        """Which graph of a version is served as things stand; blocks on the disk.

        Raises:
            FailedPrecondition: It is to be served in a precision that it does not have.
            ModelFileCorrupt: The variant's manifest can not be read.
        """
        preferred = self._preferred(serving.device or "auto")
        return choose(self.repository, key, manifest, serving.precision, preferred)

    def _preferred(self, device: str) -> Precision:
        """The server's precision for a model that runs on a device: `auto`, `cpu`, `cuda…`."""
        on_gpu = self._gpu if device == "auto" else device != "cpu"
        if self.precision == "auto":
            return "fp16" if on_gpu else "fp32"
        # It is for GPUs, and slower than fp32 on a CPU.
        return "fp32" if self.precision == "fp16" and not on_gpu else self.precision

    def _read(self, ref: ModelRef, found: KnownBad) -> ModelVersion:
        """In a thread."""
        repository = self.repository
        model = repository.model_manifest(ref.name)
        if ref.version is None:
            versions = repository.versions(ref.name)
            version = default_sound(repository, ref.name, model, versions, found)
            key = ModelKey(ref.name, version)
        else:
            key = repository.resolve(ref)
        manifest = repository.version_manifest(key.name, key.version)
        serving = model.serving
        return ModelVersion(
            key=key,
            manifest=manifest,
            serving=serving,
            folder=repository.version_folder(key.name, key.version),
            chosen=self.choose(key, manifest, serving),
        )

    def _default(self, name: str, found: KnownBad) -> str:
        """In a thread."""
        model, versions = self.repository.model_manifest(name), self.repository.versions(name)
        return default_sound(self.repository, name, model, versions, found)

    def _passed_over(self, name: str, found: KnownBad) -> list[str]:
        """In a thread."""
        if self.repository.model_manifest(name).default_version is not None:
            return []
        versions, meant = self.repository.versions(name), self._default(name, found)
        return [each for each in reversed(versions[versions.index(meant) + 1 :]) if each in found]


def _shared(name: str, parts: Iterable[tuple[NamedTarget, ModelVersion]]) -> Split[ModelVersion]:
    shares = [Share(str(target.ref), target.weight, version) for target, version in parts]
    return Split(name, shares)
