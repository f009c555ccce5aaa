"""Heartbeats: a thread that renews a worker's leases on a connection of its own while batches wait and run."""

import logging
from collections.abc import Iterable, Sequence
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType

import psycopg

from loracomp import metrics
from loracomp.database.connections import Connection, connect
from loracomp.errors import LoracompError
from loracomp.records import Job
from loracomp.worker.claim import renew_leases
from loracomp.worker.logfmt import job_ids, logfmt

_log = logging.getLogger(__name__)


class Heartbeat:
    """Renews what is held three times a lease; a connection of its own, for a busy pool would let leases run out.

    Leases that could not be renewed (cancelled, timed out, taken over) are lost: their results are worth nothing. Any
    thread may call.
    """

    def __init__(self, url: str, lease_s: float, answer_s: float) -> None:
        self._held: frozenset[Job] = frozenset()
        self._ending: frozenset[Job] = frozenset()
        self._lost: frozenset[Job] = frozenset()
        self._in_vain_since: float | None = None
        self._went_on_at = 0.0
        self._url = url
        self._lease_s = lease_s
        self._answer_s = answer_s
        self._lock = Lock()
        self._stop = Event()
        self._thread = Thread(target=self._beat, name="heartbeat", daemon=True)
        self._connection: Connection | None = None

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def held(self) -> frozenset[Job]:
        """What is claimed and neither written nor given back."""
        return self._held

    def hold(self, jobs: Iterable[Job]) -> None:
        """Renew the leases of these jobs until they are let go."""
        with self._lock:
            self._held |= frozenset(jobs)
            self._look()

    def end(self, jobs: Iterable[Job]) -> None:
        """What ends these leases is on its way: they are renewed still, and its fence tells whether they held."""
        with self._lock:
            self._ending |= frozenset(jobs)

    def let_go(self, jobs: Iterable[Job]) -> None:
        """Renew them no longer."""
        with self._lock:
            self._held -= frozenset(jobs)
            self._ending &= self._held
            self._lost &= self._held
            self._look()

    def wants(self, job: Job) -> bool:
        """Whether a job's lease is not known to be lost. Whoever asks between a model's steps shows that it goes on."""
        self._went_on_at = monotonic()
        return job not in self._lost

    def in_vain_s(self) -> float:
        """For how many seconds all that is held has been known to be lost and no step has ended.

        0 where a lease holds or nothing is held.
        """
        since = self._in_vain_since
        return 0.0 if since is None else monotonic() - max(since, self._went_on_at)

    def kept(self, jobs: Sequence[Job]) -> list[Job]:
        """Those whose lease is not known to be lost, in their order."""
        lost = self._lost
        return [job for job in jobs if job not in lost]

    def _beat(self) -> None:
        pause = self._lease_s / 3
        while not self._stop.wait(pause):
            pause = self._lease_s / (3 if self._renew() else 15)
        self._close()

    def _renew(self) -> bool:
        """Whether the database answered."""
        jobs = list(self._held)
        if not jobs:
            return True
        try:
            self._connection = self._connection or connect(
                self._url, application_name="loracomp heartbeat", vectors=False, answer_s=self._answer_s
            )
            kept = renew_leases(self._connection, jobs, self._lease_s)
        except (psycopg.Error, LoracompError) as error:
            # Whatever it is, this thread goes on: without it, every lease would run out.
            _log.warning(logfmt("heartbeat_missed", error=error))
            self._close()
            return False
        self._note_lost({job for job in jobs if job.id not in kept})
        return True

    def _note_lost(self, jobs: set[Job]) -> None:
        with self._lock:
            # What is written or given back at this moment has no lease any more, and none that was lost.
            new = (jobs & self._held) - self._lost - self._ending
            self._lost |= new
            self._look()
        metrics.LEASES_LOST.inc(len(new))
        if new:
            _log.warning(logfmt("leases_lost", jobs=job_ids(sorted(new, key=lambda job: job.id))))

    def _look(self) -> None:
        in_vain = bool(self._held) and self._held == self._lost
        self._in_vain_since = (self._in_vain_since or monotonic()) if in_vain else None

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
