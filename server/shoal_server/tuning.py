"""From the settings to what each part takes, at the start and when settings change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shoal_server.api.rpc import RpcOptions, Rpcs
from shoal_server.batching.admission import Admission, AdmissionLimits
from shoal_server.batching.policy import BatchLimits
from shoal_server.inference.cuda import CudaOptions
from shoal_server.inference.devices import CPU
from shoal_server.loading import LoadedModel, LoadOptions, ModelLoader
from shoal_server.preloading import PreloadRules
from shoal_server.profiling.profiler import ProfileLimits
from shoal_server.rate_limits import RateLimit, RateLimits, read_limits
from shoal_server.residency.idle import IdleRules
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.pressure import PressureLimits
from shoal_server.residency.pressure_monitor import PressureMonitor
from shoal_server.runtime_settings import RuntimeSettings
from shoal_server.settings import Settings
from shoal_server.telemetry.logs import configure_logging

_LOGGING = {"log_level"}
_RPCS = {"log_requests", "slow_request_ms"}
_ADMISSION = {"max_waiting_items", "max_waiting_items_per_model", "max_inflight_bytes"}
_RATES = {"rate_limit_requests_per_min", "rate_limit_tokens_per_min", "rate_limit_overrides"}
_IDLE = {"ram_idle_s", "gpu_idle_s", "adaptive_idle"}
_PRESSURE = {
    *("pressure_threshold", "pressure_lower_threshold", "pressure_critical_threshold"),
    "pressure_hold_s",
}
_BATCHES = {
    *("max_wait_ms", "max_batch_items", "max_batch_tokens", "max_padding_waste"),
    *("cuda_max_batch_items", "cuda_max_batch_tokens"),
    *("max_queue_s", "priority_head_start_ms"),
}
_WHEN_NEEDED = {"drain_s", "verify_drop_threshold", "profile_max_share", "profile_max_s"}
"""Read from the settings at the moment that they are needed."""

_PRELOADS = {
    *("preload_ahead", "preload_horizon_s", "preload_threshold", "preload_max_models"),
}
"""Read at each look ahead."""


def rpc_options(settings: Settings) -> RpcOptions:
    """What is taken in, and what is logged."""
    return RpcOptions(
        max_request_bytes=settings.max_request_bytes,
        log_requests=settings.log_requests,
        slow_request_s=settings.slow_request_ms / 1000,
    )


def admission_limits(settings: Settings) -> AdmissionLimits:
    """What may be in flight."""
    return AdmissionLimits(
        items=settings.max_waiting_items,
        items_per_model=settings.max_waiting_items_per_model,
        bytes=settings.max_inflight_bytes,
    )


def rate_limit(settings: Settings) -> RateLimit:
    """Of callers that have none of their own."""
    return RateLimit(settings.rate_limit_requests_per_min, settings.rate_limit_tokens_per_min)


def idle_rules(settings: Settings, devices: Sequence[str]) -> IdleRules:
    """When idle models leave memory."""
    timeouts_s = {
        device: settings.ram_idle_s if device == CPU else settings.gpu_idle_s for device in devices
    }
    return IdleRules(timeouts_s, adaptive=settings.adaptive_idle)


def pressure_limits(settings: Settings) -> PressureLimits:
    """When memory is short."""
    return PressureLimits(
        threshold=settings.pressure_threshold,
        lower=settings.pressure_lower_threshold,
        critical=settings.pressure_critical_threshold,
        hold_s=settings.pressure_hold_s,
    )


def profile_limits(settings: Settings) -> ProfileLimits:
    """What profiling a model may take."""
    return ProfileLimits(
        max_share=settings.profile_max_share,
        max_s=settings.profile_max_s,
        memory_threshold=settings.pressure_threshold,
        memory_critical=settings.pressure_critical_threshold,
    )


def preload_rules(settings: Settings) -> PreloadRules:
    """What is loaded before it is asked for."""
    return PreloadRules(
        is_on=settings.preload_ahead,
        horizon_s=settings.preload_horizon_s,
        threshold=settings.preload_threshold,
        max_models=settings.preload_max_models,
    )


def load_options(settings: Settings, cpu_slots: int) -> LoadOptions:
    """How models are opened and batched."""
    limits = BatchLimits(
        max_items=settings.max_batch_items,
        max_tokens=settings.max_batch_tokens,
        max_padding_waste=settings.max_padding_waste,
        max_wait_s=settings.max_wait_ms / 1000,
    )
    return LoadOptions(
        intra_op_threads=settings.intra_op_threads,
        wide_threads=cpu_slots * settings.intra_op_threads,
        verify_files=settings.verify_files,
        cuda=CudaOptions(
            memory_limit_bytes=settings.cuda_memory_limit_bytes,
            arena_strategy=settings.cuda_arena_strategy,
            cudnn_search=settings.cuda_cudnn_search,
            tf32=settings.cuda_tf32,
            cudnn_attention=settings.cuda_cudnn_attention,
        ),
        limits=limits,
        cuda_limits=replace(
            limits,
            max_items=settings.cuda_max_batch_items,
            max_tokens=settings.cuda_max_batch_tokens,
        ),
        max_queue_s=settings.max_queue_s,
        priority_head_start_s=settings.priority_head_start_ms / 1000,
    )


def let_settings_change(
    runtime: RuntimeSettings,
    *,
    rpcs: Rpcs,
    admission: Admission,
    rate_limits: RateLimits,
    loader: ModelLoader,
    pool: SessionPool[LoadedModel],
    pressure: PressureMonitor,
    devices: Sequence[str],
    cpu_slots: int,
) -> None:
    """Say which settings may change while these parts run, and what to do then."""

    def change_batches(settings: Settings) -> None:
        loaded = [each.session for each in pool.residents() if each.session is not None]
        loader.change(load_options(settings, cpu_slots), loaded)

    runtime.on_change(_LOGGING, lambda s: configure_logging(s.log_level, s.log_format))
    runtime.on_change(_RPCS, lambda s: rpcs.change(rpc_options(s)))
    runtime.on_change(_ADMISSION, lambda s: admission.change(admission_limits(s)))
    runtime.on_change(
        _RATES, lambda s: rate_limits.change(rate_limit(s), read_limits(s.rate_limit_overrides))
    )
    runtime.on_change(_BATCHES, change_batches)
    runtime.on_change(_IDLE, lambda s: pool.change_idle(idle_rules(s, devices)))
    runtime.on_change(_PRESSURE, lambda s: pressure.change(pressure_limits(s)))
    runtime.on_change(_WHEN_NEEDED | _PRELOADS, lambda _: None)
