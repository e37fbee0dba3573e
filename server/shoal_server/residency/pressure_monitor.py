"""Looks at memory at an interval, and makes room before the system does.

At the elevated level, arenas and free pages are given back first; then warm forms and the
sessions that nobody uses go, the least recently used first and one by one, until use is below
the lower threshold. At the critical level nothing is loaded meanwhile, and before each load a look
says whether it would lead there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from shoal_server.core import ModelKey
from shoal_server.errors import Overloaded
from shoal_server.lifecycle import PressureLevel, Unloading, UnloadReason
from shoal_server.residency.pressure import (
    MemoryUse,
    Pressure,
    PressureLimits,
    next_pressure,
)

log = structlog.get_logger(__name__)

# By then requests that go on have given their sessions back.
_RETRY_S = 1.0


class PressedPool(Protocol):
    """What the monitor asks of the pool; see `SessionPool`."""

    async def release_unused(self, device: str, unused_s: float, why: Unloading) -> ModelKey | None:
        """Let a warm form go, else close the least recently used session, if nobody uses it."""

    async def shrink(self, device: str) -> None:
        """Let sessions give back what only runs need."""

    def refuse_loads(self, device: str, reason: str | None) -> None:
        """Begin no load; None: load again."""

    def memory_is_short(self, device: str, short: bool) -> None:
        """Keep nothing warm meanwhile of what leaves a GPU."""

    def loading_bytes(self, device: str) -> int:
        """Bytes that the loads that go on take, at most."""

    def evictable_bytes(self, device: str) -> int:
        """Bytes of the sessions that nobody uses and that may go."""


class PressureObserver(Protocol):
    """Is told what was seen, on the event loop."""

    def memory_seen(self, device: str, used: float, level: PressureLevel) -> None:
        """A look at a device's memory: the share in use, and where it stands since."""

    def pressure_changed(
        self, device: str, before: PressureLevel, after: PressureLevel, used: float
    ) -> None:
        """A device's level changed."""


class PressureMonitor:
    """Watches the memory of all devices. Belongs to the event loop's thread."""

    def __init__(
        self,
        pool: PressedPool,
        *,
        limits: PressureLimits,
        probe: Callable[[], Mapping[str, MemoryUse]],
        shrink: Callable[[], None],
        observer: PressureObserver,
        clock: Callable[[], float],
    ) -> None:
        """Look at nothing yet.

        Args:
            pool: Whose sessions go.
            limits: When memory is short.
            probe: What is seen of each device that tells; blocks, so it is called in a thread.
            shrink: Gives free memory back to the system; blocks.
            observer: Told of each look.
            clock: Monotonic seconds.
        """
        self._pool = pool
        self._limits = limits
        self._probe = probe
        self._shrink = shrink
        self._observer = observer
        self._clock = clock
        self._pressures: dict[str, Pressure] = {}
        self._uses: dict[str, MemoryUse] = {}

    def level(self, device: str) -> PressureLevel | None:
        """Where `device` stands; None when nobody has looked, or it does not tell."""
        pressure = self._pressures.get(device)
        return pressure.level if pressure else None

    def use(self, device: str) -> MemoryUse | None:
        """What was seen of `device` last."""
        return self._uses.get(device)

    def change(self, limits: PressureLimits) -> None:
        """Go by other limits from the next look on."""
        self._limits = limits

    async def run(self, interval_s: float) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("memory_look_failed")
            await asyncio.sleep(interval_s)

    async def may_load(self, device: str, peak_bytes: int, *, unasked: bool = False) -> bool:
        """Whether a load can begin that does not bring memory to the critical threshold.

        Sessions that nobody uses go for it, but only where that is enough, and not for one
        that nobody asks for: that finds memory free, or is not loaded.

        Args:
            device: Where.
            peak_bytes: What it takes at most.
            unasked: Whether nobody asks for it.

        Returns:
            False: not beside the loads that go on.

        Raises:
            Overloaded: It can not, whoever goes.
        """
        if unasked:
            if obstacle := await self.shortage(device, peak_bytes):
                raise Overloaded(obstacle, retry_after_s=_RETRY_S)
            return True
        while True:
            try:
                await self._see()
            except Exception:
                log.exception("memory_look_failed")
                return True
            use = self._uses.get(device)
            others_bytes = self._pool.loading_bytes(device)
            need_bytes = others_bytes + peak_bytes
            if use is None or use.used_with(need_bytes) < self._limits.critical:
                return True
            least_bytes = need_bytes - self._pool.evictable_bytes(device)
            if use.used_with(least_bytes) < self._limits.critical:
                await self._release(device, 0.0)
            elif others_bytes:
                return False
            else:
                raise Overloaded(
                    f"memory of {device} is {use.used:.0%} in use, too much for a model that "
                    f"takes up to {peak_bytes} bytes while it is loaded",
                    retry_after_s=_RETRY_S,
                )

    async def shortage(self, device: str, more_bytes: int) -> str:
        """Why memory would be short with so much more in use, in words; empty: it would not."""
        try:
            await self._see()
        except Exception:
            log.exception("memory_look_failed")
            return ""
        use = self._uses.get(device)
        if use is None:
            return ""
        if self._is_short(device):
            return f"memory pressure on {device} is {self._pressures[device].level.name.lower()}"
        after = use.used_with(self._pool.loading_bytes(device) + more_bytes)
        if after >= self._limits.threshold:
            return f"memory of {device} would be {after:.0%} in use"
        return ""

    async def look(self) -> None:
        """Look once, and relieve the devices whose memory is short."""
        before = dict(self._pressures)
        await self._see()
        for device, pressure in list(self._pressures.items()):
            earlier = before.get(device, Pressure())
            if pressure.level > PressureLevel.NORMAL:
                await self._relieve(device, rose=pressure.level > earlier.level)

    async def _relieve(self, device: str, *, rose: bool) -> None:
        if rose:
            # What costs nobody a model comes first.
            await self._pool.shrink(device)
            await asyncio.to_thread(self._shrink)
            await self._see()
        while self._is_short(device):
            if not await self._release(device, self._unused_s(device)):
                return
            await self._see()

    async def _release(self, device: str, unused_s: float) -> bool:
        why = Unloading(UnloadReason.PRESSURE)
        return await self._pool.release_unused(device, unused_s, why) is not None

    def _is_short(self, device: str) -> bool:
        return self._pressures[device].level > PressureLevel.NORMAL

    def _unused_s(self, device: str) -> float:
        """How long a session must have been unused to go.

        Below critical one that was used just now stays, so that what is asked for all the
        time is not loaded and released back and forth.
        """
        critical = self._pressures[device].level is PressureLevel.CRITICAL
        return 0.0 if critical else self._limits.hold_s

    async def _see(self) -> None:
        for device, use in (await asyncio.to_thread(self._probe)).items():
            before = self._pressures.get(device, Pressure())
            after = next_pressure(before, use, self._clock(), self._limits)
            self._pressures[device] = after
            self._uses[device] = use
            self._observer.memory_seen(device, use.used, after.level)
            if after.level is not before.level:
                self._change(device, before.level, after.level, use)

    def _change(
        self, device: str, before: PressureLevel, after: PressureLevel, use: MemoryUse
    ) -> None:
        reason = None
        if after is PressureLevel.CRITICAL:
            critical = self._limits.critical
            reason = f"memory of {device} is {use.used:.0%} in use, critical from {critical:.0%} on"
        self._pool.refuse_loads(device, reason)
        self._pool.memory_is_short(device, after > PressureLevel.NORMAL)
        self._observer.pressure_changed(device, before, after, use.used)
