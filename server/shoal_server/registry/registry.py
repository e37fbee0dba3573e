"""What a caller's name for a model stands for, without asking the disk each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

import structlog

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelNotFound, ShoalError
from shoal_server.registry.aliases import Alias
from shoal_server.registry.claims import Claims
from shoal_server.registry.findings import NOTHING_FOUND, KnownBad, why_bad
from shoal_server.registry.labelled import Labelled
from shoal_server.registry.labels import Labels
from shoal_server.registry.manifest import Precision
from shoal_server.registry.meanings import Meanings, NamedTarget, shared
from shoal_server.registry.prepared import ModelVersion, PreparedVersions
from shoal_server.registry.remembered import NO_NAMES, RememberedNames
from shoal_server.registry.repository import ModelRepository

log = structlog.get_logger(__name__)


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
        self.prepared = PreparedVersions(repository, precision, gpu=gpu)
        self.default_model = default_model
        self.meanings = Meanings(default_model)
        self.labelled = Labelled(names.labels)
        self.found = found
        """Which versions are known to be bad, by model."""
        self._aliases = dict(names.aliases)
        self._pins = dict(names.pins)
        self._deregistered = set(names.deregistered)
        self.claims = Claims()
        """Held by who writes that a name means a model, or that a model goes."""
        # Of versions; None: to be made anew, since an alias was changed.
        self._aliases_of: dict[ModelKey, list[str]] | None = None
        # What a session is made of next.
        self._by_key: dict[ModelKey, ModelVersion] = {}
        self.served: Callable[[ModelKey], ModelVersion | None] = lambda key: None
        """What the session of a version was made of; None: it has none that goes on."""
        # Counts what made answers of the disk stale that are still on their way.
        self._changes = 0

    # -- looking up -----------------------------------------------------------

    async def resolve(self, text: str, routing_key: str = "") -> ModelVersion:
        """What `name`, `name@version`, an alias or nothing (the default model) stands for.

        Raises:
            InvalidInput: It can not be a name.
            ModelNotFound: The repository has no such model or version.
            ModelLoadFailed: A manifest can not be read.
            FailedPrecondition: It is to be served in a precision that it does not have.
        """
        known = self.meanings.known(text, routing_key)
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
        known = self.meanings.known(text, routing_key)
        if known is not None:
            return known
        return shared(name, found).choose(routing_key) if len(found) > 1 else found[0][1]

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
        known_bad = self.found_of(ref.name)
        version = await asyncio.to_thread(self.prepared.read, self.pinned(ref), known_bad)
        self.check_registered(ref.name)  # it may have been deregistered meanwhile
        version = replace(version, deprecation=self.labelled.deprecation_of(version.key))
        wanted, used = self.prepared.precision, version.chosen.precision
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
        return replace(served, deprecation=self.labelled.deprecation_of(version.key))

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
        return await asyncio.to_thread(self.prepared.default, name, self.found_of(name))

    async def passed_over(self, name: str) -> Mapping[ModelKey, str]:
        """The versions newer than that, which are known to be bad; why, the newest first.

        Raises:
            ShoalError: As `default_version`.
        """
        return await asyncio.to_thread(self.prepared.passed_over, name, self.found_of(name))

    async def why_bad(self, key: ModelKey) -> str | None:
        """What is known to be wrong with a version as its files are now; None: nothing.

        Raises:
            ModelLoadFailed: The system refused to read its manifest.
        """
        found = self.found_of(key.name)
        return await asyncio.to_thread(why_bad, self.repository, key, found)

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
        bare = self.meanings.bare(key.name)
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
        self,
        text: str,
        targets: Sequence[NamedTarget],
        versions: Sequence[ModelVersion],
        before: ModelVersion | None = None,
    ) -> None:
        """From now on, `text` means what `look_up` said of its targets a while ago.

        Other names of the same versions follow. Does nothing when `text` was given other
        targets or another version meanwhile.

        Args:
            text: As `resolve` takes it.
            targets: Of it, then.
            versions: What was said of them.
            before: What it meant then, where it is a model's bare name; None: nobody had asked.
        """
        now = self.meanings.bare(text or self.default_model)
        if (
            self.targets(text) != tuple(targets)
            or (before is not None and now is not None and now.key != before.key)
            or any(
                self.pinned(target.ref).version not in (None, version.key.version)
                for target, version in zip(targets, versions, strict=True)
            )
        ):
            return
        self._changes += 1
        for fresh in versions:
            self.meanings.renew(self._current(fresh))
        self._note(text or self.default_model, targets, versions)

    def adopt(self, version: ModelVersion) -> None:
        """From now on, every name of a version means it with these manifests and files."""
        self._changes += 1
        self._replace(replace(version, deprecation=self.labelled.deprecation_of(version.key)))

    def forget(self, *names: str) -> None:
        """Read the repository again when one of these models' names is asked for next."""
        self._changes += 1
        models = frozenset(names)
        self.meanings.forget(lambda key: key.name in models)
        for alias in self._aliases.values():
            # By its targets, not by what it means: one that was left out may be back.
            if not models.isdisjoint(target.key.name for target in alias.targets):
                self._drop(alias.name)

    def forget_version(self, key: ModelKey) -> None:
        """As `forget`, for the names that mean one version, and for no others."""
        self._changes += 1
        self.meanings.forget(lambda meant: meant == key)
        for alias in self._aliases.values():
            if any(target.key == key for target in alias.targets):
                self._drop(alias.name)

    def _replace(self, fresh: ModelVersion) -> None:
        if fresh.key.name in self._deregistered:
            return
        self._by_key[fresh.key] = fresh
        self.meanings.renew(fresh)

    def _drop(self, text: str) -> None:
        self._changes += 1
        self.meanings.clear(text)

    def _note(
        self, text: str, targets: Sequence[NamedTarget], versions: Sequence[ModelVersion]
    ) -> None:
        if any(each.key.name in self._deregistered for each in versions):
            return
        self.meanings.put(text, targets, [self._current(each) for each in versions])

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

    def label(self, ref: ModelRef, labels: Labels) -> None:
        """From now on, this is said of a model or a version."""
        self.labelled.put(ref, labels)
        for key, version in list(self._by_key.items()):
            if key.name == ref.name:
                self._by_key[key] = replace(version, deprecation=self.labelled.deprecation_of(key))
                self.meanings.renew(self._current(version))

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
