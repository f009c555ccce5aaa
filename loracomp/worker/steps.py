"""A step of keeping house, and when it is due."""

from dataclasses import dataclass, field
from time import monotonic

FAILED_AGAIN_S, DOUBLED_AT_MOST = 1.0, 6
"""A step that failed is tried again after this many seconds. They double with each failure, at most DOUBLED_AT_MOST
times."""
REST_AT_MOST_S = 60.0
"""A step that found nothing to do is called again after this many seconds at the latest, however long it took."""
STEP_S = 5.0
"""Seconds after which a step is cancelled. It ends by itself within a fifth of a second, unless something is wrong."""
LOCK_S = 0.1
"""Seconds for which a step waits for a lock."""


@dataclass
class Step:
    """A step and its schedule."""

    name: str
    """Name of the SQL function and of its query."""
    every_s: float
    """Seconds after which the step is due at the latest."""
    is_woken: bool = False
    """Whether a notification makes it due."""
    due_at: float = field(default_factory=monotonic)
    rests: float = 20.0
    """After a step found nothing, it pauses for this many times as long as it took, because it may be slow while an old
    snapshot exists."""
    noted_at: float = 0.0
    failures: int = 0
    """Number of failures since the step last succeeded."""
    handled: int | None = None
    """How much the last call handled; 0 if it failed, None if there was no call yet."""

    def succeed(self, handled: int, began: float) -> None:
        """Note what a call handled. If a call handled something, the step is due again at once."""
        self.handled, self.failures = handled, 0
        rest_s = min(self.rests * (monotonic() - began), REST_AT_MOST_S)
        self.due_at = began if handled else monotonic() + max(self.every_s, rest_s)

    def fail(self) -> None:
        """Note that a call failed."""
        self.handled = 0
        self.due_at = monotonic() + FAILED_AGAIN_S * 2 ** min(self.failures, DOUBLED_AT_MOST)
        self.failures += 1
