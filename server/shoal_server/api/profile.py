"""The calls of ModelControlService that measure models: between their messages and the profiler."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf import duration_pb2

from shoal.v1 import profile_pb2 as pb
from shoal_server.api.model_control import SERVICE
from shoal_server.api.rpc import Call, Context, Rpcs
from shoal_server.errors import Unavailable
from shoal_server.profiling.plan import Order, Sweep
from shoal_server.profiling.profile import Cell, Profile, Skipped
from shoal_server.profiling.profiler import Profiler

_Answers = asyncio.Queue[pb.ProfileModelResponse | None]
"""None: nothing more."""


class ProfileServicer:
    """Answers the calls of `shoal.v1.ModelControlService` that measure models."""

    def __init__(self, profiler: Profiler, draining: asyncio.Event) -> None:
        """Wire it.

        Args:
            profiler: Measures, and keeps what it found.
            draining: Set when the server is going away.
        """
        self._profiler = profiler
        self._draining = draining

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """These methods for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ProfileModel": rpcs.answer_stream(
                    "ProfileModel", pb.ProfileModelRequest, self.profile
                ),
                "GetProfile": rpcs.unary("GetProfile", pb.GetProfileRequest, self.get),
            },
        )

    async def get(self, message: pb.GetProfileRequest, call: Call) -> pb.GetProfileResponse:
        """The profile that was made last."""
        call.model = message.model
        profile = await self._profiler.get(message.model)
        return pb.GetProfileResponse(profile=write_profile(profile))

    async def profile(self, message: pb.ProfileModelRequest, context: Context, call: Call) -> None:
        """Measure a model, and tell of it meanwhile; ends when the caller leaves."""
        call.model = message.model
        # A reader that takes nothing does not hold up the sweep, and with it others.
        answers = _Answers()
        profiling = asyncio.create_task(self._profile(read_order(message), answers))
        writing = asyncio.create_task(_write(answers, context))
        draining = asyncio.create_task(self._draining.wait())
        tasks = (profiling, writing, draining)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not profiling.done():
                await _end(profiling)
            answers.put_nowait(None)
            # To its end: a call whose first write was broken off can not be ended with an error.
            await writing
            if profiling.cancelled():
                raise Unavailable("the server is shutting down")
            profiling.result()
        finally:
            await _end(*tasks)

    async def _profile(self, order: Order, answers: _Answers) -> None:
        profiled = await self._profiler.profile(
            order, lambda found: answers.put_nowait(_write_progress(found))
        )
        profile = write_profile(profiled.profile, problem=profiled.problem)
        answers.put_nowait(pb.ProfileModelResponse(profile=profile))


def read_order(message: pb.ProfileModelRequest) -> Order:
    """What is asked for; checked by the plan."""
    return Order(
        model=message.model,
        batch_sizes=tuple(message.batch_sizes),
        lengths=tuple(message.lengths),
        max_batch_tokens=message.max_batch_tokens,
        runs=message.runs,
        max_share=message.max_share,
    )


def write_profile(profile: Profile, *, problem: str = "") -> pb.ModelProfile:
    """A profile as it travels."""
    setup = profile.setup
    message = pb.ModelProfile(
        model=setup.key.name,
        version=setup.key.version,
        precision=setup.precision,
        device=setup.device,
        hardware=setup.hardware,
        runtime_version=setup.runtime,
        threads=setup.threads,
        slots=profile.slots,
        duration=_duration(profile.duration_s),
        running=_duration(profile.running_s),
        max_share=profile.max_share,
        batch_items_limit=profile.batch_items_limit,
        batch_tokens_limit=profile.batch_tokens_limit,
        cells=map(_write_cell, profile.cells),
        skipped=map(_write_skipped, profile.skipped),
        problem=problem,
        no_suggestion=profile.no_suggestion,
    )
    message.measured_at.FromNanoseconds(int(profile.measured_at_s * 1e9))
    if profile.suggestion is not None:
        message.suggestion.CopyFrom(
            pb.BatchSuggestion(
                max_batch_items=profile.suggestion.max_batch_items,
                max_batch_tokens=profile.suggestion.max_batch_tokens,
                reasons=profile.suggestion.reasons,
            )
        )
    return message


def _write_progress(found: Sweep | Cell | Skipped) -> pb.ProfileModelResponse:
    match found:
        case Sweep():
            cells = len(found.shapes) + len(found.too_large)
            return pb.ProfileModelResponse(plan=pb.ProfilePlan(cells=cells))
        case Cell():
            return pb.ProfileModelResponse(cell=_write_cell(found))
        case Skipped():
            return pb.ProfileModelResponse(skipped=_write_skipped(found))


def _write_cell(cell: Cell) -> pb.ProfileCell:
    return pb.ProfileCell(
        items=cell.shape.items,
        tokens_per_item=cell.shape.length,
        runs=cell.runs,
        least_us=round(cell.least_s * 1e6),
        p50_us=round(cell.p50_s * 1e6),
        p95_us=round(cell.p95_s * 1e6),
        items_per_s=cell.items_per_s,
        tokens_per_s=cell.tokens_per_s,
        memory_bytes=cell.memory_bytes,
        noise=cell.noise,
    )


def _write_skipped(skipped: Skipped) -> pb.SkippedCell:
    shape = skipped.shape
    return pb.SkippedCell(items=shape.items, tokens_per_item=shape.length, reason=skipped.reason)


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


async def _write(answers: _Answers, context: Context) -> None:
    while (answer := await answers.get()) is not None:
        await context.write(answer.SerializeToString())


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks; returns when they have ended, however they did."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
