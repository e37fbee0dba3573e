"""GetStatistics: what was counted, put into messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from google.protobuf import duration_pb2

from shoal.v1 import statistics_pb2 as pb
from shoal_server.core import ModelKey
from shoal_server.inference.devices import CPU
from shoal_server.registry.registry import Registry
from shoal_server.residency.probes import Gpus
from shoal_server.statistics.all_time import AllTime
from shoal_server.statistics.counts import ModelCounts, UsageCounts
from shoal_server.statistics.histogram import DurationHistogram
from shoal_server.statistics.totals import ModelTotals

_CALLERS_AT_ONCE = 100
_SHARES = (0.5, 0.9, 0.95, 0.99)


class StatisticsReader:
    """Puts the answer together. On the event loop."""

    def __init__(
        self, all_time: AllTime, registry: Registry, gpus: Gpus, devices: Sequence[str]
    ) -> None:
        """Wire it.

        Args:
            all_time: What was counted here, and before.
            registry: Knows what names stand for.
            gpus: Tells how busy they are.
            devices: That models may run on: `cpu`, `cuda:0`, …
        """
        self._all_time = all_time
        self._statistics = all_time.statistics
        self._registry = registry
        self._gpus = gpus
        self._devices = devices

    async def read(self, model: str) -> pb.GetStatisticsResponse:
        """All that was counted for a model, or for every one if `model` is empty.

        Raises:
            InvalidInput: It can not be a name.
            ModelNotFound: There is no such model.
        """
        statistics, all_time = self._statistics, self._all_time
        keys = await self._keys(model) if model else all_time.models()
        response = pb.GetStatisticsResponse(
            recent=_duration(statistics.recent_s),
            since_start=_duration(statistics.since_start_s),
            gpus=[self._gpu(device) for device in self._devices if device != CPU],
        )
        response.all_time_began.FromSeconds(int(all_time.began_s))
        for key in keys:
            counted = statistics.of_model(key)
            response.models.add(
                model=key.name if key else "",
                version=key.version if key else "",
                recent=_traffic(counted.recent),
                since_start=_traffic(counted.since_start),
                all_time=_totals(all_time.of_model(key)),
            )
            # Requests do not wait until hundreds of models are added up.
            await asyncio.sleep(0)
        names = {key.name for key in keys if key}
        for number, (caller, name) in enumerate(all_time.callers()):
            if number % _CALLERS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if not model or name in names:
                counts = statistics.usage((caller, name))
                response.usage.add(
                    caller=caller,
                    model=name,
                    recent=_usage(counts.recent),
                    since_start=_usage(counts.since_start),
                    all_time=_usage(all_time.of_caller((caller, name))),
                )
        return response

    async def _keys(self, text: str) -> list[ModelKey]:
        """The versions that a name means here and that were ever used."""
        refs = [target.ref for target in self._registry.targets(text)]
        found = [
            key
            for key in self._all_time.models()
            if key and any(key.name == ref.name and ref.version in (None, key.version)
                           for ref in refs)
        ]  # fmt: skip
        if not found:
            for ref in refs:
                await self._registry.check_exists(ref)
        return found

    def _gpu(self, device: str) -> pb.GpuStatistics:
        utilization = self._gpus.utilization(int(device.removeprefix("cuda:")))
        if utilization is None:
            return pb.GpuStatistics(device=device)
        return pb.GpuStatistics(
            device=device,
            utilization=utilization.compute,
            memory_utilization=utilization.memory,
        )


def _traffic(counts: ModelCounts) -> pb.ModelTraffic:
    return pb.ModelTraffic(
        requests=counts.requests,
        errors=counts.errors,
        items=counts.items,
        tokens=counts.tokens,
        truncated=counts.truncated,
        latency=_latency(counts.total),
        queue=_latency(counts.queue),
        inference=_latency(counts.inference),
        batch_sizes=counts.batch_sizes,
        batch_tokens=counts.batch_tokens,
        padding_tokens=counts.padding_tokens,
        running=_duration(counts.running_s),
    )


def _totals(totals: ModelTotals) -> pb.ModelTotals:
    return pb.ModelTotals(
        requests=totals.requests,
        errors=totals.errors,
        items=totals.items,
        tokens=totals.tokens,
        truncated=totals.truncated,
    )


def _latency(durations: DurationHistogram) -> pb.Latency:
    p50, p90, p95, p99 = (_us(each) for each in durations.percentiles(_SHARES))
    return pb.Latency(
        mean_us=_us(durations.mean_s),
        p50_us=p50,
        p90_us=p90,
        p95_us=p95,
        p99_us=p99,
        max_us=_us(durations.max_s),
    )


def _usage(counts: UsageCounts) -> pb.UsageCounts:
    return pb.UsageCounts(
        requests=counts.requests, failed=counts.failed, items=counts.items, tokens=counts.tokens
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
