"""The calls, from tasks, that measure models."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from shoal.v1.profile_pb2 import GetProfileRequest, ModelProfile, ProfileModelRequest
from shoal_client.aio.versions import AsyncVersionsClient
from shoal_client.errors import stream_ended
from shoal_client.profiles import ProfileAnswers
from shoal_client.ranges import all_whole, whole
from shoal_client.requests import new_request_id
from shoal_client.retry import NO_DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal_client.aio.calls import AsyncCalls
    from shoal_client.profiles import Progress


class AsyncProfileClient(AsyncVersionsClient):
    """The part of `AsyncClient` that is about profiles."""

    _calls: AsyncCalls

    async def profile_model(
        self,
        model: str = "",
        *,
        batch_sizes: Iterable[int] = (),
        lengths: Iterable[int] = (),
        max_batch_tokens: int = 0,
        runs: int = 0,
        max_share: float = 0.0,
        progress: Progress | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> ModelProfile:
        """As `Client.profile_model`."""
        request = ProfileModelRequest(
            model=model,
            batch_sizes=all_whole(batch_sizes, "batch_sizes"),
            lengths=all_whole(lengths, "lengths"),
            max_batch_tokens=whole(max_batch_tokens, "max_batch_tokens"),
            runs=whole(runs, "runs"),
            max_share=max_share,
        )
        deadline = NO_DEADLINE if timeout_s is None else self._planner.deadline(timeout_s)
        answers = self._calls.stream(
            lambda server: server.control.ProfileModel,
            request,
            attempts=self._planner.once(deadline),
            request_id=request_id or new_request_id(),
        )
        found = ProfileAnswers(progress)
        async with aclosing(answers):
            async for answer in answers:
                if (profile := found.take(answer)) is not None:
                    return profile
        raise stream_ended()

    async def get_profile(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> ModelProfile:
        """As `Client.get_profile`."""
        request = GetProfileRequest(model=model)
        response = await self._call(
            lambda server: server.control.GetProfile, request, timeout_s, request_id
        )
        return response.profile
