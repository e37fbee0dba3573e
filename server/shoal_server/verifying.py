"""Whether models still give the vectors that they gave when they were prepared.

    1. read      the texts and vectors that are kept with the version
    2. lease     its session; one that is not in memory is loaded as for a request
    3. embed     the texts through the batcher, behind everybody else's, a few at a time
    4. judge     against what the manifest says (`registry/accuracy.py`, pure)
    5. tell      an event, a record in the store; what came off worse is known to be bad

Nobody who asks for a model notices, but for the time that the runs take.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import numpy as np
import structlog

from shoal_server.core import ModelKey, Priority
from shoal_server.errors import (
    InferenceFailed,
    InvalidInput,
    ModelFileCorrupt,
    NothingToCompare,
    NotPersisted,
    ShoalError,
)
from shoal_server.lifecycle import LoadReason
from shoal_server.loading import LoadedModel
from shoal_server.placement import Placement
from shoal_server.registry.accuracy import (
    ACCURACY,
    Accuracy,
    Expected,
    accuracy_change,
    judge,
    read_accuracy,
)
from shoal_server.registry.event_log import Publisher
from shoal_server.registry.events import ModelVerified
from shoal_server.registry.file_errors import unreadable
from shoal_server.registry.findings import Findings, FoundBy
from shoal_server.registry.manifest import Precision
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.reference import (
    REFERENCE_FILE,
    KeptVectors,
    ReferenceUnreadable,
    Vectors,
    read_reference,
)
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import variant_files, variant_path
from shoal_server.registry.store import RecordStore
from shoal_server.registry.whole import WholeTasks
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Lease, State

log = structlog.get_logger(__name__)

# So few that what callers ask for meanwhile does not wait behind many of ours.
_TEXTS_AT_ONCE = 8
# Between two looks for a model whose turn it is, at most.
_LOOK_S = 60.0


@dataclass(frozen=True, slots=True)
class _Reference:
    kept: KeptVectors
    expected: Expected


class Verifier:
    """Compares models with what is kept with them. Belongs to the event loop's thread."""

    def __init__(
        self,
        registry: Registry,
        pool: SessionPool[LoadedModel],
        placement: Placement,
        findings: Findings,
        store: RecordStore,
        outcomes: dict[ModelKey, Accuracy],
        events: Publisher,
        tolerance: Callable[[], float],
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin with what is remembered.

        Args:
            registry: Knows the versions.
            pool: Has the sessions.
            placement: Chooses devices.
            findings: Are told what is worse than it was.
            store: Remembers the outcomes.
            outcomes: The last of each version; new ones are written into it.
            events: Are told of each.
            tolerance: How far the least cosine may be below the manifest's, now.
            wall_clock: Seconds since the epoch.
        """
        self._registry = registry
        self._pool = pool
        self._placement = placement
        self._findings = findings
        self._store = store
        self._events = events
        self._tolerance = tolerance
        self._wall_clock = wall_clock
        self._outcomes = outcomes
        self._tasks = WholeTasks()

    @property
    def outcomes(self) -> Mapping[ModelKey, Accuracy]:
        """The last of each version that was verified."""
        return self._outcomes

    async def verify(self, text: str) -> list[tuple[ModelKey, Accuracy]]:
        """Compare a model; of an alias all that it means, one after the other.

        Raises:
            ModelNotFound: There is no such model or version.
            NothingToCompare: There is nothing to compare it with; says what to do.
            ShoalError: It can not be loaded, or the server is too busy.
        """
        found = []
        for target in self._registry.targets(text):
            version = await self._registry.resolve(str(target.ref))
            found.append((version.key, await self.verify_version(version)))
        return found

    async def verify_version(self, version: ModelVersion) -> Accuracy:
        """Compare one version; errors as `verify`."""
        reference = await asyncio.to_thread(self._read, version)
        with await self._lease(version) as lease:
            began_s = time.monotonic()
            vectors = await embed_kept(lease.session, reference.kept.texts)
        accuracy = judge(
            reference.kept,
            vectors,
            reference.expected,
            tolerance=self._tolerance(),
            precision=lease.session.version.chosen.precision,
            at_s=self._wall_clock(),
            seconds=time.monotonic() - began_s,
        )
        await self._tasks.finish(self._tell(lease.session.version, accuracy))
        return accuracy

    async def _tell(self, made_of: ModelVersion, accuracy: Accuracy) -> None:
        key = made_of.key
        self._outcomes[key] = accuracy
        tell = log.info if accuracy.passed else log.error
        tell("verified", model=str(key), least_cosine=accuracy.least, problem=accuracy.problem)
        await self._mark(made_of, accuracy)
        self._events.publish(ModelVerified(key, accuracy))
        with suppress(NotPersisted):  # the store says it in the log
            await self._store.write(accuracy_change(key, accuracy))

    async def _mark(self, made_of: ModelVersion, accuracy: Accuracy) -> None:
        key = made_of.key
        # A session of files as they were says nothing of a version that was prepared anew.
        if not await asyncio.to_thread(self._registry.prepared.has, made_of):
            log.warning("not_marked", model=str(key), reason="its files are others by now")
        elif accuracy.passed:
            await self._findings.clear(key)
        else:
            reason = f"verification: {accuracy.problem}"
            await self._findings.note(key, reason, FoundBy.VERIFYING)

    async def _lease(self, version: ModelVersion) -> Lease[LoadedModel]:
        lease = self._pool.look_into(version.key)
        if lease is not None:
            return lease
        device = self._placement.device_for(version)
        pinned = version.serving.pinned
        return await self._pool.acquire(version.key, device, pinned=pinned, why=LoadReason.ASKED)

    def _read(self, version: ModelVersion) -> _Reference:
        """What there is to compare with; in a thread."""
        key, manifest, chosen = version.key, version.manifest, version.chosen
        repository = self._registry.repository
        own = manifest.reference.min_cosine if manifest.reference else 1.0
        expected, files = Expected(None, own), dict(manifest.files)
        path = REFERENCE_FILE
        if chosen.cosine is not None:  # a variant
            expected = Expected(chosen.cosine.mean, chosen.cosine.least)
            precision = cast(Precision, chosen.precision)  # as every variant's is
            variant = repository.variant_manifest(key.name, key.version, precision)
            its_own = f"{variant_path(variant.precision)}/{REFERENCE_FILE}"
            if its_own in variant_files(variant):
                path, files = its_own, variant_files(variant)
        if path not in files:
            raise NothingToCompare(
                f"model {key} was prepared without vectors to compare it with: `shoal models pull "
                f"{key.name} --version {key.version}` keeps some, then `shoal models reload {key}` "
                "reads them; of a folder that was copied under this name, pull the original and "
                "copy it again",
                metadata={"model": key.name, "version": key.version},
            )
        repository.verify_files(key.name, key.version, {path: files[path]})
        try:
            return _Reference(read_reference(version.folder / path), expected)
        except OSError as error:
            raise unreadable(key.name, key.version, path, error) from error
        except ReferenceUnreadable as error:
            raise ModelFileCorrupt(f"model {key}: {error}") from error


async def embed_kept(model: LoadedModel, texts: tuple[str, ...]) -> Vectors | None:
    """Embed the texts that are kept with a model, a few at a time, behind everybody else's.

    Returns:
        float32[N, D]; None when a vector is not finite.

    Raises:
        ShoalError: The server is too busy, or a run failed.
    """
    encodings = await asyncio.to_thread(model.tokenizer.encode, texts)
    rows: list[Vectors] = []
    for first in range(0, len(encodings), _TEXTS_AT_ONCE):
        ids = [each.ids for each in encodings[first : first + _TEXTS_AT_ONCE]]
        try:
            rows += await model.batcher.submit(ids, priority=Priority.LOW).rows()
        except InferenceFailed as error:
            if error.not_finite:
                return None
            raise
    return np.stack(rows)


def next_due(
    ready: Iterable[ModelKey],
    outcomes: Mapping[ModelKey, Accuracy],
    now_s: float,
    interval_s: float,
    tried: Mapping[ModelKey, float] = MappingProxyType({}),
) -> ModelKey | None:
    """Whose turn it is to be verified: of those that are due, who was it longest ago.

    Args:
        ready: In memory.
        outcomes: The last of each.
        now_s: On the outcomes' clock.
        interval_s: Between two verifications of one version.
        tried: When those were tried last that could not be verified.
    """

    def last_s(key: ModelKey) -> float:
        at_s = outcomes[key].at_s if key in outcomes else -math.inf
        return max(at_s, tried.get(key, -math.inf))

    # What was verified in times to come was so before the clock went back.
    due = [key for key in ready if not now_s - interval_s < last_s(key) <= now_s]
    return min(due, key=lambda key: (last_s(key), str(key)), default=None)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Verifies what is in memory now and then, while nothing waits for a batch."""

    verifier: Verifier
    registry: Registry
    pool: SessionPool[LoadedModel]
    interval_s: float
    wall_clock: Callable[[], float] = time.time

    async def run(self) -> None:
        """Look at an interval, for ever; at each look at most one model is verified."""
        tried: dict[ModelKey, float] = {}
        while True:
            await asyncio.sleep(min(self.interval_s, _LOOK_S))
            try:
                await self.look(tried)
            except Exception:
                # Another look may find the disk in order.
                log.exception("verification_failed")

    async def look(self, tried: dict[ModelKey, float]) -> ModelKey | None:
        """Verify the model whose turn it is, unless the server is busy.

        Args:
            tried: When versions could not be verified; is kept up to date.

        Returns:
            What was verified.
        """
        residents = [each for each in self.pool.residents() if each.state is State.READY]
        if any(each.session and each.session.batcher.waiting_items for each in residents):
            return None
        now_s = self.wall_clock()
        ready = [each.key for each in residents]
        key = next_due(ready, self.verifier.outcomes, now_s, self.interval_s, tried)
        if key is None:
            return None
        is_told = key in tried
        # Noted whatever becomes of it: what can not be verified takes nobody's turn.
        tried[key] = now_s
        try:
            await self.verifier.verify_version(self.registry.version(key))
        except ShoalError as error:
            lacks = isinstance(error, NothingToCompare)  # as it will the next time
            if not (lacks and is_told):
                tell = log.info if lacks else log.warning
                tell("not_verified", model=str(key), reason=error.message)
            return None
        del tried[key]
        return key


def remembered_outcomes(store: RecordStore) -> dict[ModelKey, Accuracy]:
    """The last outcome of each version, as the store has them."""
    found = {}
    for text, record in store.records(ACCURACY).items():
        try:
            key, accuracy = read_accuracy(text, record)
        except (ValueError, TypeError, InvalidInput) as error:
            log.error("record_left_out", kind=ACCURACY, key=text, error=repr(error))
            continue
        found[key] = accuracy
    return found
