"""What a caller hears whose deadline passes."""

from __future__ import annotations

import asyncio

from shoal_server.api.rpc import Call
from shoal_server.errors import DeadlineExceeded


class within_deadline:  # noqa: N801  (used like asyncio.timeout)
    """Answer with what was still going on when the caller's deadline passes."""

    def __init__(self, call: Call, what: str) -> None:
        self._timeout = asyncio.timeout_at(call.deadline_s)
        self._what = what

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._timeout.__aexit__(*error)  # type: ignore[arg-type]
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed while {self._what}") from None
