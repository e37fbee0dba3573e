"""A model's bare name goes over to a newer version, once that was found to be good.

    1. look      in the model's folder; before that, where the hub is asked, another process
                 prepares what is newer there (`shoal models pull NAME --if-newer`)
    2. verify    load the newest, and compare it with the vectors that are kept with it; one
                 that is bad is noted as such (`registry/findings.py`), and the next is tried
    3. switch    the name means it; the old one leaves memory (`switching.py`)

A failure leaves the name as it was, and is told by an event. What is bad is not tried again
until its files are others; what failed for want of something else (the hub, memory) is,
after a time that doubles.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal
from weakref import WeakValueDictionary

import structlog

from shoal_server.core import ModelKey, ModelRef, valid_name
from shoal_server.errors import (
    FailedPrecondition,
    InvalidInput,
    ModelLoadFailed,
    NothingToCompare,
    ShoalError,
    UpdateFailed,
)
from shoal_server.lifecycle import UnloadReason
from shoal_server.loading import LoadedModel
from shoal_server.registry.accuracy import Accuracy
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.event_log import Publisher
from shoal_server.registry.events import ModelUpdated, ModelUpdateFailed
from shoal_server.registry.findings import (
    Finding,
    Findings,
    FoundBy,
    fingerprint,
    is_of_the_version,
)
from shoal_server.registry.manifest import ModelManifest
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import State
from shoal_server.switching import Switcher
from shoal_server.verifying import Verifier

log = structlog.get_logger(__name__)

UpdateSource = Literal["repository", "hub"]
Pull = Callable[[str, Callable[[], object]], Awaitable[None]]
"""Prepares what is newer of a model, and calls when it begins to; raises UpdateFailed."""

_LONGEST_WAIT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Update:
    """What a look for a newer version came to."""

    before: ModelKey
    after: ModelKey
    accuracy: Accuracy | None
    passed_over: Mapping[ModelKey, str]
    """Those that were tried before it, or are known, and are bad; why."""

    @property
    def is_new(self) -> bool:
        """Whether the name means another version now."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class _Failure:
    """What is not tried again by itself until then, unless its files are others."""

    what: str
    until_s: float
    times: int


class _Worse(FailedPrecondition):
    """A version does not give the vectors that are kept with it."""


class Updater:
    """Goes over to newer versions. Belongs to the event loop's thread."""

    def __init__(
        self,
        registry: Registry,
        pool: SessionPool[LoadedModel],
        switcher: Switcher,
        verifier: Verifier,
        conditions: Conditions,
        findings: Findings,
        events: Publisher,
        pull: Pull,
        *,
        retry_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it.

        Args:
            registry: Says what names mean.
            pool: Has the sessions.
            switcher: Lets names mean other versions.
            verifier: Says whether a version is good.
            conditions: Show that something is being prepared.
            findings: Remember what is no good.
            events: Are told what became of it.
            pull: Prepares what is newer on the hub.
            retry_after_s: Before what failed is tried by itself again; doubled each time.
            clock: Monotonic seconds.
        """
        self._registry = registry
        self._pool = pool
        self._switcher = switcher
        self._verifier = verifier
        self._conditions = conditions
        self._findings = findings
        self._events = events
        self._pull = pull
        self._retry_after_s = retry_after_s
        self._clock = clock
        # Of preparing what is newer, and of versions that may be good.
        self._pulls: dict[str, _Failure] = {}
        self._failures: dict[ModelKey, _Failure] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def update(self, name: str, source: UpdateSource) -> Update:
        """Let a model's bare name mean its newest version that is good.

        Versions that were found to be bad are tried again; so is the one that the name means,
        where that is bad or not in memory, and then older ones.

        Args:
            name: Of the model; empty: the default model.
            source: Where to look.

        Raises:
            InvalidInput: It is no model's name.
            FailedPrecondition: The name is pinned to a version, or no other version is good.
            ShoalError: It can not be prepared or loaded.
        """
        return await self._update(name or self._registry.default_model, source, again=True)

    async def look(self, source: UpdateSource) -> None:
        """Update every model whose bare name is served from memory, one after the other."""
        for name in self._served():
            waits = (failed := self._pulls.get(name)) and self._clock() < failed.until_s
            try:
                await self._update(name, "repository" if waits else source, again=False)
            except ShoalError as error:  # was told, unless the name is not to move at all
                log.debug("not_updated", model=name, reason=error.message)
            except Exception:
                # Another look may find the disk in order.
                log.exception("update_failed", model=name)

    async def run(self, source: UpdateSource, interval_s: float) -> None:
        """Look at an interval, for ever."""
        while True:
            await asyncio.sleep(interval_s)
            await self.look(source)

    async def _update(self, name: str, source: UpdateSource, *, again: bool) -> Update:
        """See `update`; `again`: also what failed before and is as it was then."""
        valid_name(name, "model")
        if name in self._registry.aliases:
            raise InvalidInput(
                "model", f"{name!r} is an alias, which `shoal models switch` changes"
            )
        async with self._turns.setdefault(name, asyncio.Lock()):
            before = (await self._registry.resolve(name)).key
            manifest = await self._check_follows(name)
            if source == "hub" and (again or _is_of_the_hub(manifest)):
                await self._prepare_newer(before)
            return await self._go_over_to_newest(before, again=again)

    async def _go_over_to_newest(self, before: ModelKey, *, again: bool) -> Update:
        refusals: list[ShoalError] = []
        passed_over: dict[ModelKey, str] = {}
        repository = self._registry.repository
        for version in reversed(await asyncio.to_thread(repository.versions, before.name)):
            after = ModelKey(before.name, version)
            if after == before and not (again and self._is_doubtful(before)):
                break
            if not again:
                if (bad := await self._known_bad(after)) is not None:
                    passed_over[after] = bad.reason
                    continue
                if await self._waits(after):
                    break
            try:
                accuracy = await self._go_over(before, after)
            except ShoalError as error:
                await self._failed(before, after, error)
                if not _is_of_the_version(error):
                    raise
                refusals.append(error)
                passed_over[after] = error.message
                continue
            self._failures.pop(after, None)
            await self._findings.clear(after)
            if after != before:
                self._events.publish(ModelUpdated(before, after, accuracy))
            return Update(before, after, accuracy, passed_over)
        if passed_over.keys() - {before} and refusals:
            raise refusals[0]
        return Update(before, before, None, passed_over)

    async def _prepare_newer(self, before: ModelKey) -> None:
        name = before.name
        downloading = self._conditions.downloading(ModelKey(name, ""), "a newer version")
        try:
            with ExitStack() as shown:
                await self._pull(name, lambda: shown.enter_context(downloading))
        except ShoalError as error:
            self._pulls[name] = self._failure(self._pulls.get(name), "", is_final=False)
            log.warning("pull_failed", model=name, reason=error.message)
            self._events.publish(ModelUpdateFailed(before, "", error.message))
            raise
        self._pulls.pop(name, None)

    async def _go_over(self, before: ModelKey, after: ModelKey) -> Accuracy | None:
        """Verify a version and let the bare name mean it; returns how close it came."""
        was_there = self._pool.get(after) is not None
        version = await self._registry.look_up(ModelRef(after.name, after.version))
        accuracy, unverified = None, ""
        try:
            with await self._switcher.warm(version):
                self._check_is_on_disk(version)
                try:
                    accuracy = await self._verifier.verify_version(version)
                except NothingToCompare as error:
                    # Its files are what was prepared, or it could not be loaded.
                    unverified = error.message
                if accuracy is not None and not accuracy.passed:
                    raise _Worse(
                        f"model {after} is not what was prepared: {accuracy.problem}",
                        metadata={"model": after.name, "version": after.version},
                    )
                if after != before:
                    await self._switcher.update(after)
        except ShoalError:
            if not was_there and not self._is_used(after):
                await self._switcher.release_unmeant(after, UnloadReason.REJECTED)
            raise
        if unverified and after != before:
            log.info("updated_unverified", model=str(after), reason=unverified)
        return accuracy

    def _check_is_on_disk(self, version: ModelVersion) -> None:
        """That the session to be compared was made of what there is to compare it with."""
        key, made_of = version.key, self._registry.served(version.key)
        if made_of and (made_of.manifest, made_of.chosen) != (version.manifest, version.chosen):
            raise UpdateFailed(
                f"the files of {key} are others than those in memory: `shoal models reload {key}` "
                "reads them",
                metadata={"model": key.name, "version": key.version},
            )

    def _is_used(self, key: ModelKey) -> bool:
        """Whether others than we have asked for a version since we did."""
        resident = self._pool.get(key)
        return resident is not None and (
            resident.leases > 0 or resident.waiters > 0 or resident.uses > 0
        )

    async def _failed(self, before: ModelKey, after: ModelKey, error: ShoalError) -> None:
        if _is_of_the_version(error):
            await self._findings.note(after, error.message, FoundBy.LOADING)
        else:
            what = await self._fingerprint(after)
            is_final = isinstance(error, FailedPrecondition) and not isinstance(
                error, ModelLoadFailed | UpdateFailed
            )
            self._failures[after] = self._failure(
                self._failures.get(after), what, is_final=is_final
            )
        log.warning("update_failed", model=str(before), to=str(after), reason=error.message)
        self._events.publish(ModelUpdateFailed(before, after.version, error.message))

    def _failure(self, earlier: _Failure | None, what: str, *, is_final: bool) -> _Failure:
        times = earlier.times + 1 if earlier and earlier.what == what else 1
        wait_s = min(self._retry_after_s * 2 ** (times - 1), _LONGEST_WAIT_S)
        return _Failure(what, math.inf if is_final else self._clock() + wait_s, times)

    def _is_doubtful(self, key: ModelKey) -> bool:
        """Whether what a name means may be bad: it was found so, or nothing runs on it."""
        return self._findings.of(key) is not None or self._pool.get(key) is None

    async def _known_bad(self, key: ModelKey) -> Finding | None:
        found = self._findings.of(key)
        return found if found and found.files == await self._fingerprint(key) else None

    async def _waits(self, key: ModelKey) -> bool:
        failure = self._failures.get(key)
        if failure is None or self._clock() >= failure.until_s:
            return False
        return await self._fingerprint(key) == failure.what

    async def _fingerprint(self, key: ModelKey) -> str:
        return await asyncio.to_thread(fingerprint, self._registry.repository, key)

    async def _check_follows(self, name: str) -> ModelManifest:
        """That the bare name means whatever is newest; returns what `model.toml` says."""
        pinned = self._registry.pins.get(name)
        if pinned is not None:
            raise FailedPrecondition(
                f"{name} is pinned to version {pinned}; `shoal models unpin-version` unpins it",
                metadata={"model": name, "version": pinned},
            )
        manifest = await asyncio.to_thread(self._registry.repository.model_manifest, name)
        if manifest.default_version is not None:
            raise FailedPrecondition(
                f"the model.toml of {name} names default_version {manifest.default_version}",
                metadata={"model": name, "version": manifest.default_version},
            )
        return manifest

    def _served(self) -> list[str]:
        """Models whose bare name requests use, that may mean another version."""
        names = []
        for resident in self._pool.residents():
            key = resident.key
            meant = self._registry.meanings.bare(key.name)
            is_meant = meant is not None and meant.key == key
            if resident.state is State.READY and is_meant and key.name not in self._registry.pins:
                names.append(key.name)
        return sorted(names)


def _is_of_the_version(error: ShoalError) -> bool:
    return is_of_the_version(error) or isinstance(error, _Worse)


def _is_of_the_hub(manifest: ModelManifest) -> bool:
    """Whether its source has revisions: a folder and a package are not looked at again."""
    return bool(re.fullmatch(r"[A-Za-z0-9][^/:]*/[^/:]+", manifest.source))
