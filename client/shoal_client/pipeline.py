"""The requests of one bulk job over a stream: their order, number and retries.

No I/O: methods take `now` and return what to send. One thread or task uses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from shoal.v1.embed_pb2 import EmbedRequest, EmbedStreamRequest, EmbedStreamResponse
from shoal_client.errors import DeadlineExceededError, InternalError, UnavailableError, from_status
from shoal_client.ranges import UINT32_MAX
from shoal_client.results import Embeddings, decode
from shoal_client.retry import Attempts, Deadline, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

# The server times each request from when it reads it; this is for the way back.
_GRACE_S = 5.0


@dataclass(slots=True)
class _Sent:
    """A request without an answer yet.

    Attributes:
        message: What was sent.
        number: Its place among the requests.
        offset: Inputs before its first one.
        attempts: Its tries.
        resend_at: When to send it again; None while the server has it.
    """

    message: EmbedStreamRequest
    number: int
    offset: int
    attempts: Attempts
    resend_at: float | None = None


class Pipeline:
    """What was sent and is not yet answered, and what was answered out of order.

    Inputs count as in flight from `submit` until `take_ready` hands over their
    vectors; that bounds the memory of both sides.

    Attributes:
        request_id: Of the stream, for results and errors.
    """

    def __init__(
        self,
        *,
        policy: RetryPolicy,
        timeout_s: float,
        max_inputs: int,
        random: Callable[[], float],
        request_id: str = "",
    ) -> None:
        """Begin a job.

        Args:
            policy: When a request that failed is sent again.
            timeout_s: For each request, retries included; infinity for none.
            max_inputs: Inputs in flight, at most.
            random: Source of the back-off's jitter, in [0, 1).
            request_id: See the class.
        """
        self._policy = policy
        self._timeout_s = timeout_s
        self._max_inputs = max_inputs
        self._random = random
        self.request_id = request_id
        self._sent: dict[str, _Sent] = {}
        # Those of them with a resend_at, mostly none: looking through all that is sent,
        # for each answer, would cost more than the answer does.
        self._backing_off: list[_Sent] = []
        self._answered: dict[int, Embeddings] = {}
        self._submitted = 0
        self._taken = 0
        self._inputs_submitted = 0
        self._inputs_taken = 0

    def has_room(self, inputs: int) -> bool:
        """Whether so many inputs more may be submitted; they may when there are none."""
        in_flight = self._inputs_submitted - self._inputs_taken
        return not in_flight or in_flight + inputs <= self._max_inputs

    @property
    def is_idle(self) -> bool:
        """Whether every request was answered and its result taken."""
        return self._taken == self._submitted

    def submit(self, request: EmbedRequest, now: float) -> EmbedStreamRequest:
        """Take in the next request; returns it as it is to be sent."""
        message = EmbedStreamRequest(id=str(self._submitted), request=request)
        _limit_time(message, self._timeout_s)
        deadline = Deadline(now + self._timeout_s, self._timeout_s)
        attempts = Attempts(self._policy, deadline=deadline, random=self._random)
        self._sent[message.id] = _Sent(message, self._submitted, self._inputs_submitted, attempts)
        self._submitted += 1
        self._inputs_submitted += len(request.texts)
        return message

    def resolve(self, answer: EmbedStreamResponse, now: float) -> None:
        """Take in an answer.

        Raises:
            UnavailableError: This server will not do; a new stream is to take
                over what it has not answered.
            ShoalError: The request failed and will not be tried again.
        """
        sent = self._sent.get(answer.id)
        if sent is None:
            raise InternalError(
                f"the server answered {answer.id!r}, which was not asked",
                code=grpc.StatusCode.INTERNAL,
                request_id=self.request_id,
            )
        if answer.WhichOneof("result") == "response":
            del self._sent[answer.id]
            self._answered[sent.number] = decode(answer.response, self.request_id)
            return
        error = from_status(answer.error, self.request_id)
        error.shift_index(sent.offset)
        if isinstance(error, UnavailableError):
            raise error
        sent.resend_at = now + sent.attempts.delay_s(error, now)
        self._backing_off.append(sent)

    def take_ready(self) -> list[Embeddings]:
        """The results that are next in order; they leave the pipeline."""
        ready = []
        while (result := self._answered.pop(self._taken, None)) is not None:
            ready.append(result)
            self._taken += 1
            self._inputs_taken += len(result)
        return ready

    def due(self, now: float) -> list[EmbedStreamRequest]:
        """The requests whose back-off is over, to be sent again."""
        if not self._backing_off:
            return []
        messages, still = [], []
        for sent in self._backing_off:
            if sent.resend_at is not None and sent.resend_at > now:
                still.append(sent)
                continue
            sent.resend_at = None
            _limit_time(sent.message, sent.attempts.deadline - now)
            messages.append(sent.message)
        self._backing_off = still
        return messages

    def unanswered(self) -> list[EmbedStreamRequest]:
        """What a new stream must send again, the oldest first."""
        return [sent.message for sent in self._sent.values() if sent.resend_at is None]

    def wait_s(self, now: float) -> float | None:
        """How long to wait for an answer; None: as long as it takes."""
        resend_at = [sent.resend_at for sent in self._backing_off if sent.resend_at is not None]
        if resend_at:
            return max(0.0, min(resend_at) - now)
        return None if self._timeout_s == math.inf else self._timeout_s + _GRACE_S

    def check_silence(self) -> None:
        """To be called when `wait_s` passed without an answer.

        Raises:
            DeadlineExceededError: It was not a back-off that was waited for: the
                server had time for an answer and gave none.
        """
        if not self._backing_off:
            raise DeadlineExceededError(
                f"the server answered nothing for {self._timeout_s + _GRACE_S:g} s",
                code=grpc.StatusCode.DEADLINE_EXCEEDED,
                request_id=self.request_id,
            )


def _limit_time(message: EmbedStreamRequest, timeout_s: float) -> None:
    timeout_ms = timeout_s * 1000
    if timeout_ms <= UINT32_MAX:  # else the server has no limit to keep, for 49 days
        message.timeout_ms = max(1, round(timeout_ms))
