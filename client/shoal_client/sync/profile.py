"""The calls, from threads, that measure models."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from shoal.v1.profile_pb2 import GetProfileRequest, ModelProfile, ProfileModelRequest
from shoal_client.errors import stream_ended
from shoal_client.profiles import ProfileAnswers
from shoal_client.ranges import all_whole, whole
from shoal_client.requests import new_request_id
from shoal_client.retry import NO_DEADLINE
from shoal_client.sync.versions import VersionsClient

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal_client.profiles import Progress
    from shoal_client.sync.calls import Calls


class ProfileClient(VersionsClient):
    """The part of `Client` that is about profiles."""

    _calls: Calls

    def profile_model(
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
        """Measure how fast a model is on the server, by batch size and length.

        Takes seconds to minutes: the server rests after each run, so that requests are
        served meanwhile. It keeps the profile; `get_profile` shows it again. Never tried
        again by the SDK, and asked of the first server.

        Args:
            model: See `get_model`; of an alias of several versions, the one with most of
                the traffic.
            batch_sizes: Items in a batch. Default: powers of two up to twice what the
                server lets into a batch.
            lengths: Tokens of each item. Default: powers of two from 8, and the model's
                maximum.
            max_batch_tokens: Larger batches are left out. Default: what the server lets
                into a batch.
            runs: Timed runs of each batch. Default: 10.
            max_share: Of one slot's time, that the runs take at most. Default: the most
                that the server allows (`profile_max_share`).
            progress: Called with how many batches are done with, of how many.
            timeout_s: Seconds for all of it. Default: as long as the server takes, which
                bounds it (`profile_max_s`).
            request_id: See the class.

        Raises:
            ModelNotFoundError: The repository has none of that name.
            InvalidArgumentError: A number is out of its limits.
            OverloadedError: Another model is being profiled.
            FailedPreconditionError: It can not be loaded, or left memory meanwhile.
        """
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
        with closing(answers):
            for answer in answers:
                if (profile := found.take(answer)) is not None:
                    return profile
        raise stream_ended()

    def get_profile(
        self, model: str = "", *, timeout_s: float | None = None, request_id: str = ""
    ) -> ModelProfile:
        """The last profile of a model as the server that answers would serve it now.

        Args:
            model: See `profile_model`.
            timeout_s: See the class.
            request_id: See the class.

        Raises:
            ModelNotFoundError: The repository has none of that name.
            FailedPreconditionError: It has none of this version, precision, device,
                hardware and runtime.
        """
        request = GetProfileRequest(model=model)
        return self._call(
            lambda server: server.control.GetProfile, request, timeout_s, request_id
        ).profile
