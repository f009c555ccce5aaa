"""Bounds how often a thread looks for work in vain, because any login can send the notifications that wake it."""

from time import monotonic

PAUSE_S = 0.05
"""Seconds between looks that find nothing, however many notifications come."""
AT_ONCE = 10
"""How many of these looks may follow one another without a pause. A row and its answer cause about three."""


class Pace:
    """The pauses of one thread. Only looks that find nothing need one."""

    def __init__(self) -> None:
        self._until = 0.0

    def pause_s(self) -> float:
        """Seconds to wait after a look that found nothing."""
        now = monotonic()
        self._until = max(self._until, now - AT_ONCE * PAUSE_S) + PAUSE_S
        return max(0.0, self._until - now)
