"""What keeps models as they should be: verifying, reloading, updating."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from shoal_server.composition.instruments import Instruments
from shoal_server.core import ModelKey
from shoal_server.loading import LoadedModel, ModelLoader
from shoal_server.placement import Placement
from shoal_server.pulling import NewerPull
from shoal_server.registry.accuracy import Accuracy
from shoal_server.registry.conditions import Conditions
from shoal_server.registry.findings import Findings
from shoal_server.registry.registry import Registry
from shoal_server.registry.store import RecordStore
from shoal_server.reloading import Reloader
from shoal_server.residency.pool import SessionPool
from shoal_server.settings import Settings
from shoal_server.switching import Switcher
from shoal_server.updating import Updater, UpdateSource
from shoal_server.verifying import Schedule, Verifier


@dataclass(frozen=True, slots=True)
class Upkeep:
    """The parts; all belong to the event loop."""

    verifier: Verifier
    schedule: Schedule
    reloader: Reloader
    updater: Updater


def open_upkeep(
    instruments: Instruments,
    *,
    registry: Registry,
    pool: SessionPool[LoadedModel],
    placement: Placement,
    loader: ModelLoader,
    switcher: Switcher,
    conditions: Conditions,
    findings: Findings,
    store: RecordStore,
    outcomes: dict[ModelKey, Accuracy],
    exits: AsyncExitStack,
) -> Upkeep:
    """Build them; `exits` closes what was opened."""
    settings, events, runtime = instruments.settings, instruments.events, instruments.runtime
    verifier = Verifier(
        registry,
        pool,
        placement,
        findings,
        store,
        outcomes,
        events,
        lambda: runtime.values.verify_drop_threshold,
    )
    reloader = Reloader(
        registry, pool, placement, conditions, findings, verifier.verify_version, events,
        loader.distrust,
    )  # fmt: skip
    exits.push_async_callback(reloader.close)
    updater = Updater(
        registry,
        pool,
        switcher,
        verifier,
        conditions,
        findings,
        events,
        NewerPull(registry.repository.root, settings.update_timeout_s),
        retry_after_s=settings.auto_update_interval_s,
    )
    return Upkeep(
        verifier,
        Schedule(verifier, registry, pool, settings.verify_interval_s),
        reloader,
        updater,
    )


def default_source(settings: Settings) -> UpdateSource:
    """Where UpdateModel looks when the caller does not say."""
    return "hub" if settings.auto_update == "hub" else "repository"
