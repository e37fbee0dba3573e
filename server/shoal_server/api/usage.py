"""GetUsage: when models are asked for, and what is expected soon."""

from __future__ import annotations

import asyncio

import grpc

from shoal.v1 import model_control_pb2
from shoal.v1 import usage_pb2 as pb
from shoal_server.api.rpc import Call, Rpcs
from shoal_server.preloading import Candidate, Preloader
from shoal_server.registry.registry import Registry
from shoal_server.usage.history import Pattern, UsageHistory

SERVICE = model_control_pb2.DESCRIPTOR.services_by_name["ModelControlService"].full_name

_HOUR_S = 3600
# Requests do not wait until all of them are put together.
_PATTERNS_AT_ONCE = 20


class UsageServicer:
    """Answers the call of `shoal.v1.ModelControlService` about patterns of use."""

    def __init__(self, history: UsageHistory, preloader: Preloader, registry: Registry) -> None:
        """Wire it.

        Args:
            history: Knows the patterns.
            preloader: Knows what would be loaded ahead.
            registry: Knows what there is.
        """
        self._history = history
        self._preloader = preloader
        self._registry = registry

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        """The method for a gRPC server."""
        return grpc.method_handlers_generic_handler(
            SERVICE, {"GetUsage": rpcs.unary("GetUsage", pb.GetUsageRequest, self.get_usage)}
        )

    async def get_usage(self, message: pb.GetUsageRequest, call: Call) -> pb.GetUsageResponse:
        """The patterns of one name, or of all, and what follows from them now."""
        call.model = wanted = message.model
        patterns = self._history.patterns
        if wanted and wanted not in patterns:
            for target in self._registry.targets(wanted):
                await self._registry.check_exists(target.ref)
        rules = self._preloader.rules
        response = pb.GetUsageResponse(threshold=rules.threshold, preload_ahead=rules.is_on)
        response.horizon.FromNanoseconds(int(rules.horizon_s * 1e9))
        now = self._history.hour
        for number, (name, pattern) in enumerate(sorted(patterns.items())):
            if number % _PATTERNS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if wanted in ("", name):
                response.patterns.append(_pattern(name, pattern, now))
        async for candidate in self._preloader.candidates(wanted):
            response.predictions.append(_prediction(candidate))
        return response


def _pattern(name: str, pattern: Pattern, now: int) -> pb.UsagePattern:
    message = pb.UsagePattern(model=name, requests_by_hour=pattern.mean_requests(now))
    message.first_asked.FromSeconds(pattern.first * _HOUR_S)
    message.last_asked.FromSeconds(pattern.last * _HOUR_S)
    return message


def _prediction(candidate: Candidate) -> pb.UsagePrediction:
    expected = candidate.prediction
    return pb.UsagePrediction(
        model=expected.name,
        version=str(candidate.version.key) if candidate.version else "",
        probability=expected.probability,
        expected_requests=expected.requests,
        obstacle=candidate.obstacle,
    )
