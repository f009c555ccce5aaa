"""A step of the keeper: when it is due, and the transaction in which it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from loracomp.database.connections import Connection, row_of
from loracomp.database.queries import QUERIES


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


def call(name: str, connection: Connection) -> int:
    """Call a step's SQL function; returns how much it handled."""
    return int(row_of(connection, QUERIES[name])["handled"])


@contextmanager
def within(connection: Connection, seconds: float) -> Iterator[None]:
    """A transaction whose statements are cancelled after this many seconds, and wait only a moment for locks."""
    with connection.transaction():
        connection.execute(QUERIES["set_step_timeouts"], {"timeout": f"{1000 * seconds:.0f}ms"})
        yield
