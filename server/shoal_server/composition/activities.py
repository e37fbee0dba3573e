"""What goes on beside serving. A new activity is one more line here.

`exits` ends them, the last begun first, before any part that they use is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack

import structlog

from shoal_server.composition.instruments import Instruments
from shoal_server.composition.models import Models, free_memory
from shoal_server.registry.whole import WholeTasks
from shoal_server.returning import Return

log = structlog.get_logger(__name__)


def begin_watching(instruments: Instruments, models: Models, exits: AsyncExitStack) -> None:
    """Before the server serves: what keeps watch over memory."""
    interval_s = instruments.settings.pressure_interval_s
    if interval_s > 0:
        models.pool.guard_loads(models.pressure.may_load)
        watching = asyncio.create_task(models.pressure.run(interval_s))
        exits.callback(watching.cancel)


async def recall_names(instruments: Instruments, models: Models) -> None:
    """Before the server serves: bare names mean what they meant when it ended."""
    if (back := _return(instruments, models)) is not None:
        await back.recall_names(models.residents)


def begin_activities(instruments: Instruments, models: Models, exits: AsyncExitStack) -> None:
    """Once the server serves: the rest."""
    settings = instruments.settings
    if (back := _return(instruments, models)) is not None:
        _begin(back.bring_back(models.residents), exits)
    else:
        _begin(models.residents.forget_former(), exits)
    _begin(models.kept_statistics.run(settings.statistics_write_s), exits)
    if settings.verify_interval_s > 0:
        _begin(models.upkeep.schedule.run(), exits)
    if settings.auto_update != "off":
        updater = models.upkeep.updater
        _begin(updater.run(settings.auto_update, settings.auto_update_interval_s), exits)
    _begin(models.preloader.run(), exits)


def begin_reading(
    models: Models, refresh: Callable[[str], Awaitable[None]], exits: AsyncExitStack
) -> None:
    """Once the server serves: know every model, however many there are.

    Args:
        models: Of the server.
        refresh: Looks a model's health up and tells who watches it.
        exits: Of the server.
    """

    async def read() -> None:
        began_s = time.monotonic()
        names = await models.catalog.index.names()
        # One at a time: a thread that reads a thousand would hold up requests.
        for name in names:
            if name not in models.registry.deregistered:
                _, files = await models.catalog.index.look_at(name)
                models.states.came(name, files.versions if files else ())
                await refresh(name)
        log.info("models_read", models=len(names), seconds=round(time.monotonic() - began_s, 3))

    _begin(read(), exits)


def _return(instruments: Instruments, models: Models) -> Return | None:
    """What brings back what was in memory; None: nothing is to come back."""
    settings = instruments.settings
    # What another server on this repository has in memory is not this one's.
    if not settings.restore_models or models.store.problem:
        return None
    free = free_memory(settings, models)
    return Return(models.registry, models.pool, models.placement, free)


def _begin(work: Coroutine[None, None, None], exits: AsyncExitStack) -> None:
    """Do `work` beside serving, until it is done or the server stops."""
    tasks = WholeTasks()
    exits.push_async_callback(tasks.close)
    tasks.start(work)
