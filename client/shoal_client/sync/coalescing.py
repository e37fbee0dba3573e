"""Calls of threads that share requests.

There is no thread of its own: each request is sent by one of the callers in it, its
*leader*, while the others wait. The leader is the one with the latest deadline, so
that it need not leave before the request is over. If it is interrupted all the same,
the others go again under another one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from shoal_client.coalescing import Coalescing, Lane, LaneKey, lane_key
from shoal_client.errors import ShoalError, client_closed
from shoal_client.results import Embeddings, decode
from shoal_client.shared_request import Call, SharedRequest

if TYPE_CHECKING:
    from shoal.v1.embed_pb2 import EmbedRequest
    from shoal_client.base import CallPlanner
    from shoal_client.retry import Deadline
    from shoal_client.splitting import PartLimits
    from shoal_client.sync.calls import Calls


class ThreadCall(Call):
    """A call whose caller waits at a mailbox, where also requests to lead arrive."""

    __slots__ = ("mailbox",)

    def __init__(self, request: EmbedRequest, deadline: Deadline) -> None:
        super().__init__(request, deadline)
        self.mailbox: SimpleQueue[Embeddings | Exception | SharedRequest[ThreadCall]]
        self.mailbox = SimpleQueue()

    def _deliver(self, outcome: Embeddings | Exception) -> None:
        self.mailbox.put(outcome)


class Coalescer:
    """Lets the calls of several threads share requests. Any thread may use it."""

    def __init__(self, coalescing: Coalescing, calls: Calls, planner: CallPlanner) -> None:
        """Begin with nobody.

        Args:
            coalescing: How calls share.
            calls: Sends the requests.
            planner: Plans them.
        """
        self._coalescing = coalescing
        self._calls = calls
        self._planner = planner
        self._lock = threading.Lock()  # guards the lanes, all that is in them, and _closed
        self._lanes: dict[LaneKey, Lane[ThreadCall]] = {}
        self._closed = False

    def takes(self, request: EmbedRequest) -> bool:
        """Whether a call's request may be shared."""
        return self._coalescing.takes(request)

    def embed(self, request: EmbedRequest, limits: PartLimits, deadline: Deadline) -> Embeddings:
        """Make a call, in company where there is some.

        Args:
            request: With all of the call's inputs.
            limits: What the server allows in one request of these options.
            deadline: Of this call only.

        Raises:
            ShoalError: It failed for good.
        """
        call = ThreadCall(request, deadline)
        with self._lock:
            if self._closed:
                raise client_closed()
            lane = self._lane(lane_key(request), limits)
            lane.add(call)
            self._start_due(lane)
        try:
            outcome = self._wait(lane, call)
        except BaseException:
            self._leave(lane, call)
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Fail the calls that wait for their turn; closing the channels ends the others."""
        with self._lock:
            self._closed = True
            for lane in self._lanes.values():
                lane.fail_waiting(client_closed())

    def _wait(self, lane: Lane[ThreadCall], call: ThreadCall) -> Embeddings | Exception:
        """What became of a call; leads the requests that it is asked to.

        Raises:
            DeadlineExceededError: Its time is over.
        """
        while True:
            patience_s = math.inf if call.shared else self._coalescing.max_wait_s
            left_s = call.deadline.at - self._planner.clock.now()
            try:
                letter = call.mailbox.get(timeout=_timeout_s(min(patience_s, left_s)))
            except Empty:
                if left_s > patience_s:
                    with self._lock:
                        self._start_due(lane, overdue=call.shared is None)
                elif call.mailbox.empty():
                    raise call.out_of_time() from None
                continue
            if not isinstance(letter, SharedRequest):
                return letter
            self._lead(lane, letter)

    def _lead(self, lane: Lane[ThreadCall], shared: SharedRequest[ThreadCall]) -> None:
        """Send a request and tell its callers how it went, the leader among them."""
        go_again: Sequence[ThreadCall] = ()
        try:
            response, request_id = self._calls.unary(
                lambda server: server.embed.Embed,
                shared.message,
                attempts=shared.attempts,
                request_id=shared.request_id,
            )
            shared.answer(decode(response, request_id))
        except ShoalError as error:
            go_again = shared.blame(error)
        except Exception as error:
            shared.fail(error)
        with self._lock:
            self._end(lane, shared, go_again)

    def _leave(self, lane: Lane[ThreadCall], call: ThreadCall) -> None:
        """Take out a call whose thread goes; the request that it led goes to another."""
        with self._lock:
            lane.leave(call)
            if call.shared is not None and call.shared.latest is call:
                self._end(lane, call.shared, call.shared.calls)

    def _end(
        self,
        lane: Lane[ThreadCall],
        shared: SharedRequest[ThreadCall],
        go_again: Sequence[ThreadCall],
    ) -> None:
        lane.end(shared, go_again)
        self._start_due(lane)
        if lane.is_idle:
            self._lanes.pop(lane.key, None)

    def _start_due(self, lane: Lane[ThreadCall], *, overdue: bool = False) -> None:
        for shared in lane.take_due(overdue=overdue):
            shared.latest.mailbox.put(shared)

    def _lane(self, key: LaneKey, limits: PartLimits) -> Lane[ThreadCall]:
        lane = self._lanes.get(key)
        if lane is None:
            planner = self._planner
            lane = self._lanes[key] = Lane(
                key,
                self._coalescing,
                limits,
                servers=len(planner.connection.targets),
                new_attempts=planner.attempts,
            )
        return lane


def _timeout_s(seconds: float) -> float | None:
    """As queues take it."""
    return None if seconds > threading.TIMEOUT_MAX else max(0.0, seconds)
