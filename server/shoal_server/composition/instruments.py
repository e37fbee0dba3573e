"""What tells about a server and what it is told: metrics, events, statistics, settings."""

from __future__ import annotations

import time
from dataclasses import dataclass

from shoal_server.registry.event_log import EventLog
from shoal_server.registry.events import SettingsChanged
from shoal_server.runtime_settings import RuntimeSettings
from shoal_server.settings import Settings
from shoal_server.statistics.statistics import Statistics
from shoal_server.telemetry.metrics import Metrics
from shoal_server.telemetry.observers import EventTelemetry
from shoal_server.usage.history import UsageHistory


@dataclass(frozen=True, slots=True)
class Instruments:
    """There before any other part, and of use to all."""

    settings: Settings
    """As they were at the start."""
    metrics: Metrics
    events: EventLog
    runtime: RuntimeSettings
    """As they are now."""
    statistics: Statistics
    history: UsageHistory
    started_at_s: float


def make_instruments(settings: Settings) -> Instruments:
    """Those of a new server."""
    metrics = Metrics()
    events = EventLog(
        settings.event_history, wall_clock=time.time, observer=EventTelemetry(metrics)
    )
    return Instruments(
        settings=settings,
        metrics=metrics,
        events=events,
        runtime=RuntimeSettings(settings, lambda changes: events.publish(SettingsChanged(changes))),
        statistics=Statistics(
            window_s=settings.statistics_window_s,
            max_callers=settings.max_callers,
            clock=time.monotonic,
        ),
        history=UsageHistory(time.time),
        started_at_s=time.time(),
    )
