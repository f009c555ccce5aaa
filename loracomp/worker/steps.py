"""A step of the keeper: when it is due, and the transaction in which it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from loracomp.database.connections import Connection, row_of
from loracomp.database.queries import QUERIES


@dataclass
class Step:
    """A step, and when it is due."""

    name: str
    """Of the SQL function and of its query."""
    every_s: float
    """At least so often."""
    is_woken: bool = False
    """Whether a notification makes it due."""
    due_at: float = field(default_factory=monotonic)
    rests: float = 20.0
    """How many times as long as it took it rests after it found nothing: under an old snapshot it may be slow."""
    noted_at: float = 0.0
    failures: int = 0
    """Since it last succeeded."""
    handled: int | None = None
    """By the last call; 0 if it failed, None if there was none."""


def call(name: str, connection: Connection) -> int:
    """Call a step's SQL function; returns how much it handled."""
    return int(row_of(connection, QUERIES[name])["handled"])


@contextmanager
def within(connection: Connection, seconds: float) -> Iterator[None]:
    """A transaction whose statements are cancelled after so many seconds, and wait for a lock for a moment only."""
    with connection.transaction():
        connection.execute(QUERIES["set_step_timeouts"], {"timeout": f"{1000 * seconds:.0f}ms"})
        yield
