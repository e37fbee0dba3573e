"""Profiles models, one at a time, and keeps what was found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnxruntime
import structlog

from shoal_server.batching.slots import Slots
from shoal_server.errors import FailedPrecondition, Overloaded
from shoal_server.inference.devices import CPU
from shoal_server.inference.packed import packed_key
from shoal_server.lifecycle import LoadReason
from shoal_server.loading import LoadedModel, ModelLoader
from shoal_server.placement import Placement
from shoal_server.profiling.bench import SessionBench
from shoal_server.profiling.hardware import hardware_name
from shoal_server.profiling.kept import KeptProfiles
from shoal_server.profiling.memory import growth_probe, room_bytes
from shoal_server.profiling.plan import Order, Sweep, plan_sweep
from shoal_server.profiling.profile import (
    Cell,
    NoSuggestion,
    Profile,
    Setup,
    Skipped,
    Suggestion,
)
from shoal_server.profiling.suggestion import suggest
from shoal_server.profiling.sweep import Measuring
from shoal_server.registry.event_log import EventLog
from shoal_server.registry.events import ModelProfiled
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.probes import Gpus, Memory, memory_limits

log = structlog.get_logger(__name__)

_RETRY_S = 5.0

Tell = Callable[[Sweep | Cell | Skipped], None]
"""Called with the sweep that begins, then with each of its batches."""


@dataclass(frozen=True, slots=True)
class ProfileLimits:
    """What a sweep may take."""

    max_share: float
    """Of one slot's time."""
    max_s: float
    """From its first run to its last."""
    memory_threshold: float
    """Share of memory in use up to which batches are suggested."""
    memory_critical: float
    """Share of memory in use that no run may lead to."""


@dataclass(frozen=True, slots=True)
class Profiled:
    """A profile that was made."""

    profile: Profile
    problem: str
    """Why it is not on disk; empty: it is."""


class Profiler:
    """Belongs to the event loop's thread."""

    def __init__(
        self,
        *,
        registry: Registry,
        pool: SessionPool[LoadedModel],
        placement: Placement,
        loader: ModelLoader,
        slots: Mapping[str, Slots],
        gpus: Gpus,
        kept: KeptProfiles,
        events: EventLog,
        limits: Callable[[], ProfileLimits],
    ) -> None:
        """Wire it.

        Args:
            registry: Knows the models.
            pool: Has their sessions.
            placement: Chooses a device for those that are not in memory.
            loader: Knows what batches of a model may be.
            slots: By device.
            gpus: Tell of themselves.
            kept: Where profiles are kept.
            events: Is told of each profile.
            limits: As they are now.
        """
        self._registry = registry
        self._pool = pool
        self._placement = placement
        self._loader = loader
        self._slots = slots
        self._gpus = gpus
        self._kept = kept
        self._events = events
        self._limits = limits
        self._busy_with = ""

    async def get(self, text: str) -> Profile:
        """The profile of a model as it would be served here, now.

        Raises:
            FailedPrecondition: There is none.
            ShoalError: As `Registry.resolve`; or there is no device for it.
        """
        version = await self._resolve(text)
        setup = await self._setup(version, self._device(version))
        profile = self._kept.get(setup)
        if profile is not None:
            return profile
        others = [each.setup for each in self._kept.of(version.key)]
        elsewhere = "".join(
            f"; there is one of {each.precision} on {each.device} ({each.hardware}, ONNX Runtime "
            f"{each.runtime}, threads: {each.threads})"
            for each in others[-1:]
        )
        raise FailedPrecondition(
            f"model {version.key} has no profile of {setup.precision} on {setup.device} as it is "
            f"now (`shoal models profile` makes one){elsewhere}",
            metadata={"model": version.key.name, "version": version.key.version},
        )

    async def profile(self, order: Order, tell: Tell) -> Profiled:
        """Measure a model, loading it first where needed.

        A caller that leaves ends it, and then nothing is kept.

        Raises:
            InvalidInput: The order is out of its limits.
            Overloaded: Another one is going on.
            FailedPrecondition: The model left memory meanwhile, or nothing could be measured.
            ShoalError: It can not be loaded, or a run failed.
        """
        version = await self._resolve(order.model)
        if self._busy_with:
            raise Overloaded(
                f"{self._busy_with} is being profiled, and one model is at a time",
                retry_after_s=_RETRY_S,
                metadata={"limit": "profiles at once", "limit_value": 1},
            )
        self._busy_with = str(version.key)
        try:
            profile = await self._profile(order, version, tell)
        finally:
            self._busy_with = ""
        problem = await self._kept.keep(profile)
        self._tell_everybody(profile)
        return Profiled(profile, problem)

    async def _profile(self, order: Order, version: ModelVersion, tell: Tell) -> Profile:
        limits, device = self._limits(), self._device(version)
        batches = self._loader.limits(version, device)
        alone = not (version.chosen.batch_invariant or version.serving.allow_mixing)
        sweep = plan_sweep(
            order,
            batches,
            alone=alone,
            max_tokens=version.manifest.max_tokens,
            max_share=limits.max_share,
        )
        with await self._pool.acquire(version.key, device, why=LoadReason.ASKED) as lease:
            model = lease.session
        # As it will be served: what is made faster after the first answer is so by now.
        await model.improved()
        setup = await self._setup(version, device)

        def memory() -> list[Memory]:
            return _memory(device, self._gpus)

        room = room_bytes(await asyncio.to_thread(memory), limits.memory_threshold)
        bench = SessionBench(
            self._pool,
            model,
            growth=growth_probe(device, self._gpus),
            memory=memory,
            threshold=limits.memory_critical,
        )
        tell(sweep)
        began_s = time.monotonic()
        measuring = Measuring(
            sweep, bench, max_s=limits.max_s, tell=tell, clock=time.monotonic, sleep=asyncio.sleep
        )
        result = await measuring.run()
        if not result.cells:
            raise FailedPrecondition(
                f"no batch of model {version.key} could be measured: {result.skipped[-1].reason}"
            )
        slots = self._slots[device].count
        suggested = suggest(
            result.cells, slots=slots, room_bytes=room, too_much=result.too_much, alone=alone
        )
        return Profile(
            setup=setup,
            slots=slots,
            measured_at_s=time.time(),
            duration_s=time.monotonic() - began_s,
            running_s=result.running_s,
            max_share=sweep.max_share,
            batch_items_limit=batches.max_items,
            batch_tokens_limit=batches.max_tokens,
            cells=tuple(sorted(result.cells, key=_place)),
            skipped=tuple(sorted(result.skipped, key=_place)),
            suggestion=suggested if isinstance(suggested, Suggestion) else None,
            no_suggestion=suggested.reason if isinstance(suggested, NoSuggestion) else "",
        )

    async def _resolve(self, text: str) -> ModelVersion:
        targets = self._registry.targets(text)
        return await self._registry.resolve(str(max(targets, key=lambda each: each.weight).ref))

    def _device(self, version: ModelVersion) -> str:
        resident = self._pool.get(version.key)
        return self._placement.device_for(
            version, current=resident.device if resident is not None else None
        )

    async def _setup(self, version: ModelVersion, device: str) -> Setup:
        def look() -> tuple[str, str]:
            return hardware_name(device, self._gpus), packed_key(version.files)

        hardware, graph = await asyncio.to_thread(look)
        return Setup(
            key=version.key,
            precision=version.chosen.precision,
            device=device,
            hardware=hardware,
            runtime=onnxruntime.__version__,
            threads=self._loader.threads if device == CPU else 0,
            graph=graph,
        )

    def _tell_everybody(self, profile: Profile) -> None:
        setup, suggestion = profile.setup, profile.suggestion
        log.info(
            "model_profiled",
            model=str(setup.key),
            device=setup.device,
            cells=len(profile.cells),
            duration_s=round(profile.duration_s, 3),
        )
        self._events.publish(
            ModelProfiled(
                setup.key,
                device=setup.device,
                precision=setup.precision,
                cells=len(profile.cells),
                seconds=profile.duration_s,
                max_batch_items=suggestion.max_batch_items if suggestion else 0,
                max_batch_tokens=suggestion.max_batch_tokens if suggestion else 0,
            )
        )


def _memory(device: str, gpus: Gpus) -> list[Memory]:
    """The limits of a device's memory that hold."""
    if device == CPU:
        return memory_limits()
    memory = gpus.memory(int(device.removeprefix("cuda:")))
    return [memory] if memory else []


def _place(each: Cell | Skipped) -> tuple[int, int]:
    return each.shape.length, each.shape.items
