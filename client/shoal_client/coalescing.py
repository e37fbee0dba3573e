"""When calls go, and which of them together. No I/O.

What a request costs hardly depends on how many texts it holds, so callers with a text
each are served for less when they share requests. Calls of equal options wait in a
`Lane`. They go

- as soon as fewer requests are on their way than may be, and a fair share of all calls
  waits: with nothing on its way that is at once, so that a lone caller never waits, and
  else when others have come or a request has come back;
- at the latest after `max_wait_s`.

Without the fair share, callers that are answered together would go again as one request
of the first of them and another, a whole round trip later, of the rest.

Shared requests, and not a message a call on an open stream: the server does less for
them, the client much less, and deadlines, retries and servers taken in turn stay what
they are for every other call. docs/performance.md has the figures.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from shoal.v1.embed_pb2 import EmbedRequest
from shoal_client.errors import twin
from shoal_client.shared_request import C, SharedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shoal_client.retry import Attempts, Deadline
    from shoal_client.splitting import PartLimits

LaneKey = tuple[bool, bytes]


@dataclass(frozen=True, slots=True)
class Coalescing:
    """How concurrent calls of `embed` and `embed_tokens` share requests.

    Attributes:
        requests_in_flight: Shared requests on their way together, for each server
            and each combination of options. The fewer, the larger they are.
        max_texts: Inputs in one shared request. Calls with more go by themselves.
        max_wait_s: The longest that a call waits for its turn, whatever is on its
            way; infinity for no limit.
    """

    requests_in_flight: int = 2
    max_texts: int = 256
    max_wait_s: float = 0.02

    def __post_init__(self) -> None:
        if self.requests_in_flight < 1 or self.max_texts < 1 or not self.max_wait_s > 0:
            raise ValueError("requests_in_flight, max_texts and max_wait_s must be above 0")

    def takes(self, request: EmbedRequest) -> bool:
        """Whether a call's request may be shared; none is for the server to refuse."""
        return 1 <= len(request.texts) + len(request.tokens) <= self.max_texts


def lane_key(request: EmbedRequest) -> LaneKey:
    """Equal for requests that may be put together: same kind of input, equal options."""
    options = EmbedRequest()
    options.CopyFrom(request)
    options.ClearField("texts")
    options.ClearField("tokens")
    return bool(request.tokens), options.SerializeToString(deterministic=True)


class Lane(Generic[C]):
    """Calls of equal options that wait for their turn, and what is on its way.

    Whoever drives it serialises access to it.

    Attributes:
        key: What the calls have in common.
    """

    def __init__(
        self,
        key: LaneKey,
        coalescing: Coalescing,
        limits: PartLimits,
        *,
        servers: int,
        new_attempts: Callable[[Deadline], Attempts],
    ) -> None:
        """Begin with nobody.

        Args:
            key: See the class.
            coalescing: How calls share.
            limits: What the server allows in one request.
            servers: To whom requests go in turn.
            new_attempts: Begins the tries of a request.
        """
        self.key = key
        self._most_requests = coalescing.requests_in_flight * servers
        self._most_inputs = min(limits.items, coalescing.max_texts)
        self._most_bytes = limits.bytes
        self._new_attempts = new_attempts
        self._waiting: deque[C] = deque()
        self._on_way: set[SharedRequest[C]] = set()
        self._calls_on_way = 0

    def __repr__(self) -> str:
        return (
            f"Lane({len(self._waiting)} calls wait, {self._calls_on_way} are on their way "
            f"in {len(self._on_way)} requests)"
        )

    @property
    def has_waiting(self) -> bool:
        """Whether a call waits for its turn."""
        return bool(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is on its way."""
        return not self._waiting and not self._on_way

    def add(self, call: C) -> None:
        """Take in a call, the last in line."""
        self._waiting.append(call)

    def take_due(self, *, overdue: bool = False) -> list[SharedRequest[C]]:
        """What is to be sent now; each counts as on its way until `end`.

        Args:
            overdue: A call has waited long enough; all go that wait.
        """
        due = []
        while self._waiting:
            is_overdue = overdue or self._waiting[0].again
            if not is_overdue and not self._is_turn():
                break
            calls = self._take(len(self._waiting) if is_overdue else self._fair_share())
            shared = SharedRequest(calls, self._new_attempts)
            self._on_way.add(shared)
            self._calls_on_way += len(calls)
            due.append(shared)
        return due

    def end(self, shared: SharedRequest[C], go_again: Iterable[C] = ()) -> None:
        """Note that a request is over, once; those to go again do so at the next look."""
        if shared not in self._on_way:
            return
        self._on_way.remove(shared)
        self._calls_on_way -= len(shared.calls)
        again = [call for call in go_again if call.waits]
        for call in again:
            call.shared, call.again = None, True
        self._waiting.extendleft(reversed(again))

    def leave(self, call: C) -> None:
        """Forget a call whose caller is gone; those who share its request go on."""
        call.waits = False
        if call.shared is None and call in self._waiting:
            self._waiting.remove(call)

    def fail_waiting(self, error: Exception) -> None:
        """Give those who wait for their turn an error."""
        for call in self._waiting:
            call.settle(twin(error))
        self._waiting.clear()

    def _is_turn(self) -> bool:
        is_free = len(self._on_way) < self._most_requests
        return is_free and len(self._waiting) >= self._fair_share()

    def _fair_share(self) -> int:
        """One request's part of all calls, those on their way included."""
        share = -(-(self._calls_on_way + len(self._waiting)) // self._most_requests)
        return min(share, self._most_inputs)

    def _take(self, most_calls: int) -> list[C]:
        """The first in line, whatever its size, and those after it that fit."""
        first = self._waiting.popleft()
        calls, inputs, size_bytes = [first], first.inputs, first.size_bytes
        while self._waiting and len(calls) < most_calls:
            call = self._waiting[0]
            inputs += call.inputs
            size_bytes += call.size_bytes
            fits = inputs <= self._most_inputs and size_bytes <= self._most_bytes
            if not fits or first.alone or call.alone:
                break
            calls.append(self._waiting.popleft())
        return calls
