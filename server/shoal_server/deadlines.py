"""Whether a cancelled call's caller left or its deadline passed: gRPC cancels for both alike."""

from __future__ import annotations


def has_passed(deadline_s: float | None, *, began_s: float, now_s: float) -> bool:
    """Whether a call that was cancelled now was so for its deadline.

    gRPC's own clock ends a call a little before ours: it rounds timeouts up, by up to 1%.

    Args:
        deadline_s: On the monotonic clock; None: there is none.
        began_s: When the call began, on the same clock.
        now_s: When it was cancelled.
    """
    if deadline_s is None:
        return False
    tolerance_s = 0.02 + 0.01 * (deadline_s - began_s)
    return now_s >= deadline_s - tolerance_s
