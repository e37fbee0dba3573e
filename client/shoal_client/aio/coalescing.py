"""Calls of tasks that share requests. The twin of `sync.coalescing`.

Each request has a task of its own, so that a caller who is cancelled takes no others
along; when all of its callers are gone it is cancelled too.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING

from shoal_client.coalescing import Coalescing, Lane, LaneKey, lane_key
from shoal_client.errors import ShoalError, client_closed
from shoal_client.results import Embeddings, decode
from shoal_client.shared_request import Call, SharedRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.v1.embed_pb2 import EmbedRequest
    from shoal_client.aio.calls import AsyncCalls
    from shoal_client.base import CallPlanner
    from shoal_client.retry import Deadline
    from shoal_client.splitting import PartLimits


class TaskCall(Call):
    """A call whose caller awaits a future."""

    __slots__ = ("future",)

    def __init__(self, request: EmbedRequest, deadline: Deadline) -> None:
        super().__init__(request, deadline)
        self.future: asyncio.Future[Embeddings] = asyncio.get_running_loop().create_future()

    def expire(self) -> None:
        """Tell the caller, who then leaves, that its time is over."""
        if self.waits:
            self._deliver(self.out_of_time())

    def _deliver(self, outcome: Embeddings | Exception) -> None:
        if self.future.done():  # cancelled: the caller is about to leave
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class AsyncCoalescer:
    """Lets the calls of several tasks share requests.

    Belongs to the event loop of its first call.
    """

    def __init__(self, coalescing: Coalescing, calls: AsyncCalls, planner: CallPlanner) -> None:
        """Begin with nobody.

        Args:
            coalescing: How calls share.
            calls: Sends the requests.
            planner: Plans them.
        """
        self._coalescing = coalescing
        self._calls = calls
        self._planner = planner
        self._lanes: dict[LaneKey, _DrivenLane] = {}
        self._closed = False

    def takes(self, request: EmbedRequest) -> bool:
        """Whether a call's request may be shared."""
        return self._coalescing.takes(request)

    async def embed(
        self, request: EmbedRequest, limits: PartLimits, deadline: Deadline
    ) -> Embeddings:
        """As `Coalescer.embed`."""
        if self._closed:
            raise client_closed()
        call = TaskCall(request, deadline)
        lane = self._lane(lane_key(request), limits)
        lane.add(call)
        timer = None
        if deadline.at != math.inf:
            left_s = deadline.at - self._planner.clock.now()
            timer = asyncio.get_running_loop().call_later(left_s, call.expire)
        try:
            return await call.future
        finally:
            if timer is not None:
                timer.cancel()
            if call.waits:
                lane.leave(call)

    async def close(self) -> None:
        """Fail all calls."""
        self._closed = True
        for lane in list(self._lanes.values()):
            await lane.close()

    def _lane(self, key: LaneKey, limits: PartLimits) -> _DrivenLane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _DrivenLane(
                Lane(
                    key,
                    self._coalescing,
                    limits,
                    servers=len(self._planner.connection.targets),
                    new_attempts=self._planner.attempts,
                ),
                self._calls,
                max_wait_s=self._coalescing.max_wait_s,
                on_idle=lambda: self._lanes.pop(key, None),
            )
        return lane


class _DrivenLane:
    """A lane and the tasks that send its requests."""

    def __init__(
        self,
        lane: Lane[TaskCall],
        calls: AsyncCalls,
        *,
        max_wait_s: float,
        on_idle: Callable[[], object],
    ) -> None:
        self._lane = lane
        self._calls = calls
        self._max_wait_s = max_wait_s
        self._on_idle = on_idle
        self._tasks: dict[SharedRequest[TaskCall], asyncio.Task[None]] = {}
        self._look: asyncio.Handle | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def add(self, call: TaskCall) -> None:
        """Take in a call."""
        self._lane.add(call)
        self._start_due_soon()

    def leave(self, call: TaskCall) -> None:
        """Forget a call whose caller is gone."""
        self._lane.leave(call)
        if call.shared in self._tasks and call.shared.is_abandoned:
            self._tasks[call.shared].cancel()

    async def close(self) -> None:
        """Fail the calls that wait and cancel what is on its way."""
        self._lane.fail_waiting(client_closed())
        if self._tasks:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.wait(self._tasks.values())

    def _start_due_soon(self) -> None:
        # When the tasks that are ready have had their turn: callers who were answered
        # together then go again together.
        if self._look is None:
            self._look = asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._look = None
        self._start_due()

    def _start_due(self, *, overdue: bool = False) -> None:
        for shared in self._lane.take_due(overdue=overdue):
            task = self._tasks[shared] = asyncio.create_task(self._send(shared), name="shoal-embed")
            task.add_done_callback(partial(self._end, shared))
        self._set_alarm()
        if self._lane.is_idle:
            self._on_idle()

    async def _send(self, shared: SharedRequest[TaskCall]) -> None:
        try:
            response, request_id = await self._calls.unary(
                lambda server: server.embed.Embed,
                shared.message,
                attempts=shared.attempts,
                request_id=shared.request_id,
            )
            shared.answer(decode(response, request_id))
        except ShoalError as error:
            self._lane.end(shared, shared.blame(error))
        except Exception as error:
            shared.fail(error)

    def _end(self, shared: SharedRequest[TaskCall], task: asyncio.Task[None]) -> None:
        # Here and not in the task: one that is cancelled early never begins.
        del self._tasks[shared]
        if task.cancelled():  # by `close`, or nobody waits for it
            shared.fail(client_closed())
        self._lane.end(shared)
        self._start_due_soon()

    def _set_alarm(self) -> None:
        if self._alarm is not None and not self._lane.has_waiting:
            self._alarm.cancel()
            self._alarm = None
        elif self._alarm is None and self._lane.has_waiting and self._max_wait_s != math.inf:
            self._alarm = asyncio.get_running_loop().call_later(self._max_wait_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._start_due(overdue=True)
