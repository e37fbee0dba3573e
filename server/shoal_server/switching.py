"""Gives names other versions, without a request that fails or waits for a load.

    1. look up   the new versions on the disk
    2. warm      lease the new sessions, loaded first; the old ones are leased meanwhile,
                 so that neither is evicted for the other
    3. write     to the store, so that the change outlasts the server
    4. point     the name means the new versions: one assignment, between two requests
    5. release   old sessions that no name means any longer, after their last lease

A failure in 1 to 3 leaves everything as it was. A caller that leaves ends 1 and 2; from
3 on the change is made.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

import structlog

from shoal_server.core import ModelKey, ModelRef, valid_name
from shoal_server.errors import FailedPrecondition, InvalidInput, ModelNotFound, UpdateFailed
from shoal_server.lifecycle import LoadReason, UnloadReason
from shoal_server.loading import LoadedModel
from shoal_server.placement import Placement
from shoal_server.registry.aliases import Alias, Target, check_targets, new_alias
from shoal_server.registry.deprecations import check_not_refused
from shoal_server.registry.event_log import Publisher
from shoal_server.registry.events import NameSwitched, SwitchCause
from shoal_server.registry.meanings import NamedTarget
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.remembered import alias_change, pin_change
from shoal_server.registry.store import Change, RecordStore
from shoal_server.registry.whole import WholeTasks
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Lease, State

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Switched:
    """An alias after a change, and the change."""

    alias: Alias
    switch: NameSwitched


class Switcher:
    """Changes what names mean. Belongs to the event loop's thread."""

    def __init__(
        self,
        registry: Registry,
        pool: SessionPool[LoadedModel],
        placement: Placement,
        store: RecordStore,
        events: Publisher,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Wire it.

        Args:
            registry: Has the names.
            pool: Has the sessions.
            placement: Chooses devices.
            store: Remembers what changed.
            events: Are told of every switch, when it is done.
            wall_clock: Seconds since the epoch, for the history.
        """
        self._registry = registry
        self._pool = pool
        self._placement = placement
        self._store = store
        self._events = events
        self._wall_clock = wall_clock
        # Held by who changes a name, so that changes of one name come one after the other.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # What changes that go on are about to point names at, and how many of them.
        self._needed: Counter[ModelKey] = Counter()
        self._tasks = WholeTasks()

    async def switch(
        self, name: str, targets: Sequence[NamedTarget], *, keep_previous: bool = False
    ) -> Switched:
        """Let an alias stand for other versions; it is made where there is none.

        Args:
            name: Of the alias.
            targets: Models; those without a version stand for the one they mean now.
            keep_previous: Leave what no name means any longer in memory.

        Raises:
            InvalidInput: The name, or a target, can not be one.
            FailedPrecondition: A model has that name, or a target is deprecated and refused.
            ShoalError: A target is not there or can not be loaded, or the change can not
                be written; says why.
        """
        valid_name(name, "alias")
        async with self._turn(name):
            await self._check_free(name)
            began_s = time.monotonic()
            versions = [await self._registry.look_up(self._meant(each.ref)) for each in targets]
            chosen = [
                Target(version.key, target.weight)
                for version, target in zip(versions, targets, strict=True)
            ]
            check_targets(chosen, "targets")
            now_s = self._wall_clock()
            check_not_refused(versions, now_s)
            current = self._registry.aliases.get(name)
            alias = current.switched(chosen, now_s) if current else new_alias(name, chosen, now_s)
            return await self._give(alias, versions, SwitchCause.SWITCH, began_s, keep_previous)

    async def roll_back(
        self, name: str, revision: int | None = None, *, keep_previous: bool = False
    ) -> Switched:
        """Let an alias stand for what it stood for before; again: for what was before that.

        Args:
            name: Of the alias.
            revision: Of its history; None: what served before.
            keep_previous: As in `switch`.

        Raises:
            ModelNotFound: There is no such alias.
            FailedPrecondition: It has no such revision, nothing was before, or that is refused.
            ShoalError: As `switch`.
        """
        async with self._turn(name):
            began_s = time.monotonic()
            current = self.alias(name)
            wanted = current.revision_before(revision)
            alias = current.rolled_back(wanted, self._wall_clock())
            versions = [
                await self._registry.look_up(ModelRef(each.key.name, each.key.version))
                for each in wanted.targets
            ]
            check_not_refused(versions, self._wall_clock())
            return await self._give(alias, versions, SwitchCause.ROLLBACK, began_s, keep_previous)

    async def remove_alias(self, name: str) -> None:
        """Forget an alias and its history; what it stood for stays in memory.

        Raises:
            ModelNotFound: There is no such alias.
            NotPersisted: The disk refused.
        """
        async with self._turn(name):
            before = tuple(target.key for target in self.alias(name).targets)
            weights = self._weights(name)

            async def commit() -> None:
                await self._store.write(alias_change(name, None))
                self._registry.remove_alias(name)
                log.info("alias_deleted", name=name)
                self._events.publish(
                    NameSwitched(name, SwitchCause.DELETED, before, (), 0.0, 0.0, weights)
                )

            await self._tasks.finish(commit())

    async def set_version_policy(self, name: str, version: str | None) -> ModelKey:
        """Let a model's bare name mean one version, or again its manifest's or the newest.

        The newest is one that is not known to be bad; a version that is named is served all
        the same. When the name is served from memory now, the new version is loaded first.

        Args:
            name: Of the model.
            version: To pin the name to; None: no longer.

        Returns:
            What the name means now.

        Raises:
            ShoalError: There is no such model or version, or it is refused or can not be loaded.
        """
        valid_name(name, "model")
        async with self._turn(name):
            began_s, found = time.monotonic(), self._registry.found_of(name)
            if version is None:
                ref = ModelRef(name, await self._registry.default_version(name))
            else:
                ref = ModelRef(name, valid_name(version, "version"))
            fresh = await self._registry.look_up(ref)
            check_not_refused([fresh] if version else [], self._wall_clock())
            old = self._meaning(name)
            is_resident = any(self._is_resident(key) for key in old)

            def point() -> None:
                self._registry.pin(name, version, fresh)
                if version is None and self._registry.found_of(name) is not found:
                    # It may be known to be bad by now: whoever asks next finds out.
                    self._registry.forget(name)

            await self._change(
                name, SwitchCause.POLICY, old, [fresh], pin_change(name, version), point,
                began_s=began_s, warm=is_resident, keep_previous=False,
            )  # fmt: skip
            return fresh.key

    async def update(self, key: ModelKey) -> None:
        """Let a model's bare name mean its newest version not known to be bad, if it is `key`.

        Raises:
            UpdateFailed: It is not, or not any longer.
            ShoalError: As `set_version_policy`.
        """
        name = key.name
        async with self._turn(name):
            began_s = time.monotonic()
            newest = await self._registry.default_version(name)
            if newest != key.version or name in self._registry.pins:
                # No fault of this version: another time it may be.
                raise UpdateFailed(
                    f"{name} means no newest version, or another one than {key.version}, by now",
                    metadata={"model": name, "version": key.version},
                )
            fresh = await self._registry.look_up(ModelRef(name, key.version))
            await self._change(
                name, SwitchCause.UPDATE, self._meaning(name), [fresh], pin_change(name, None),
                lambda: self._registry.pin(name, None, fresh),
                began_s=began_s, warm=True, keep_previous=False,
            )  # fmt: skip

    async def warm(self, version: ModelVersion) -> Lease[LoadedModel]:
        """A session of `version`, in memory; loading it has warmed it up.

        Raises:
            ShoalError: It can not be loaded.
        """
        key = version.key
        while True:
            resident = self._pool.get(key)
            current = resident.device if resident else None
            device = self._placement.device_for(version, current=current)
            pinned = version.serving.pinned
            await self._pool.load(key, device, pinned=pinned, why=LoadReason.SWITCHED)
            # Nothing comes between the end of the load and this.
            lease = self._pool.look_into(key)
            if lease is not None:
                return lease

    async def release_unmeant(
        self, key: ModelKey, reason: UnloadReason = UnloadReason.SWITCHED
    ) -> None:
        """Unload what no name means, unless it is pinned or about to be meant."""
        resident = self._pool.get(key)
        if resident is None or resident.pinned or self._registry.names_of(key):
            return
        if self._needed[key]:  # a lease only delays the unloading: its name would wait for a load
            return
        await self._pool.unload(key, reason=reason)

    def alias(self, name: str) -> Alias:
        """An alias as it is now.

        Raises:
            ModelNotFound: There is no such alias.
        """
        alias = self._registry.aliases.get(name)
        if alias is None:
            raise ModelNotFound(f"there is no alias {name[:64]!r}", metadata={"alias": name[:64]})
        return alias

    async def close(self) -> None:
        """Wait for no more releases."""
        await self._tasks.close()

    # -- the change ------------------------------------------------------------

    async def _give(
        self,
        alias: Alias,
        versions: Sequence[ModelVersion],
        cause: SwitchCause,
        began_s: float,
        keep_previous: bool,
    ) -> Switched:
        switch = await self._change(
            alias.name,
            cause,
            self._meaning(alias.name),
            versions,
            alias_change(alias.name, alias),
            lambda: self._registry.point(alias, versions),
            began_s=began_s,
            warm=True,
            keep_previous=keep_previous,
        )
        return Switched(alias, switch)

    async def _change(
        self,
        name: str,
        cause: SwitchCause,
        old: Sequence[ModelKey],
        versions: Sequence[ModelVersion],
        record: Change,
        point: Callable[[], None],
        *,
        began_s: float,
        warm: bool,
        keep_previous: bool,
    ) -> NameSwitched:
        with self._needing([version.key for version in versions]), ExitStack() as leases:
            held = set()
            for key in old:
                if (lease := self._pool.look_into(key)) is not None:
                    leases.callback(lease.release)
                    held.add(key)
            if warm:
                for version in versions:
                    # What is held may be on its way out: it would be waited for for ever.
                    if version.key not in held:
                        leases.callback((await self.warm(version)).release)
            warm_s = time.monotonic() - began_s

            async def commit() -> NameSwitched:
                models = {version.key.name for version in versions}
                with self._registry.claims.naming(models):
                    for model in models:  # it may have been deregistered while it was loaded
                        self._registry.check_registered(model)
                    await self._store.write(record)
                    before = self._weights(name)
                    point()
                new = tuple(version.key for version in versions)
                switch_s = time.monotonic() - began_s - warm_s
                switch = NameSwitched(
                    name, cause, tuple(old), new, warm_s, switch_s, before, self._weights(name)
                )
                self._tell(switch)
                if not keep_previous:
                    for key in set(old) - set(new):
                        self._tasks.start(self.release_unmeant(key))
                return switch

            return await self._tasks.finish(commit())

    def _weights(self, name: str) -> tuple[int, ...]:
        """Of each version that shares a name's traffic; empty where one has it all."""
        alias = self._registry.aliases.get(name)
        targets = alias.targets if alias else ()
        return tuple(each.weight for each in targets) if len(targets) > 1 else ()

    def _tell(self, switch: NameSwitched) -> None:
        log.info(
            "switched", name=switch.name, cause=switch.cause,
            before=[str(key) for key in switch.before], after=[str(key) for key in switch.after],
            warm_ms=round(switch.warm_s * 1e3, 1), switch_ms=round(switch.switch_s * 1e3, 1),
        )  # fmt: skip
        self._events.publish(switch)

    @contextmanager
    def _needing(self, keys: Sequence[ModelKey]) -> Iterator[None]:
        """Let other changes take none of these away meanwhile."""
        self._needed.update(keys)
        try:
            yield
        finally:
            self._needed.subtract(keys)
            self._needed = +self._needed

    # -- names -----------------------------------------------------------------

    def _meaning(self, name: str) -> list[ModelKey]:
        """What an alias, or a model's bare name, means as far as anybody asked."""
        alias = self._registry.aliases.get(name)
        if alias is not None:
            return [target.key for target in alias.targets]
        known = self._registry.meanings.known(name)
        return [known.key] if known else []

    def _meant(self, ref: ModelRef) -> ModelRef:
        """A target: an alias would make its meaning, and its history, another's."""
        if ref.version is None and ref.name in self._registry.aliases:
            raise InvalidInput("targets", f"{ref.name!r} is an alias; name a model, or a version")
        return ref

    def _is_resident(self, key: ModelKey) -> bool:
        resident = self._pool.get(key)
        return resident is not None and resident.state in (State.LOADING, State.READY)

    async def _check_free(self, name: str) -> None:
        if name in self._registry.aliases:
            return
        if await asyncio.to_thread(self._registry.repository.has, name):
            raise FailedPrecondition(
                f"{name!r} is a model; an alias needs a name of its own", metadata={"alias": name}
            )

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        lock = self._turns.setdefault(name, asyncio.Lock())
        async with lock:
            yield
