"""Heartbeats: a thread that renews a worker's leases on a connection of its own while a batch runs."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType

from loracomp.db import Connection, connect
from loracomp.link import DATABASE_AWAY
from loracomp.logfmt import logfmt
from loracomp.records import Job
from loracomp.steps.claim import renew_leases

_log = logging.getLogger(__name__)


class Heartbeat:
    """Renews what is held three times a lease; a connection of its own, for a busy pool would let leases run out.

    Leases that could not be renewed (cancelled, timed out, taken over) are `lost`: their results are worth nothing.
    """

    def __init__(self, url: str, lease_s: float) -> None:
        self.held: tuple[Job, ...] = ()
        self.lost: set[int] = set()
        self._url = url
        self._lease_s = lease_s
        self._stop = Event()
        self._thread = Thread(target=self._beat, name="heartbeat", daemon=True)
        self._connection: Connection | None = None

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def holding(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Renew the leases of these jobs until the block ends."""
        self.held, self.lost = tuple(jobs), set()
        try:
            yield
        finally:
            self.held = ()

    def _beat(self) -> None:
        pause = self._lease_s / 3
        while not self._stop.wait(pause):
            pause = self._lease_s / (3 if self._renew() else 15)
        self._close()

    def _renew(self) -> bool:
        """Whether the database answered."""
        jobs = self.held
        if not jobs:
            return True
        try:
            self._connection = self._connection or connect(
                self._url, application_name="loracomp heartbeat", vectors=False
            )
            kept = renew_leases(self._connection, jobs, self._lease_s)
        except DATABASE_AWAY as error:
            _log.warning(logfmt("heartbeat_missed", error=error))
            self._close()
            return False
        if jobs is self.held:
            self._note_lost({job.id for job in jobs} - kept)
        return True

    def _note_lost(self, ids: set[int]) -> None:
        if ids - self.lost:
            _log.warning(logfmt("leases_lost", jobs=",".join(map(str, sorted(ids - self.lost)))))
        self.lost = ids

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
