"""What a worker holds: which leases are renewed, which are ending, and which are lost."""

import logging
from collections.abc import Iterable, Sequence
from threading import Lock
from time import monotonic

from loracomp import metrics
from loracomp.database.connections import Connection
from loracomp.records import Job
from loracomp.worker.claim import renew_leases
from loracomp.worker.logfmt import job_ids, logfmt

_log = logging.getLogger(__name__)


class Leases:
    """The leases of one worker. Any thread may call; nothing but `renew` asks the database.

    Leases that could not be renewed (cancelled, timed out, taken over) are lost: their results are worth nothing.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._held: frozenset[Job] = frozenset()
        self._ending: frozenset[Job] = frozenset()
        self._lost: frozenset[Job] = frozenset()
        self._in_vain_since: float | None = None
        self._went_on_at = 0.0
        self._lock = Lock()

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

    def renew(self, connection: Connection) -> None:
        """Renew all that is held, and note what is lost."""
        jobs = list(self._held)
        if not jobs:
            return
        kept = renew_leases(connection, jobs, self._lease_s)
        self._note_lost({job for job in jobs if job.id not in kept})

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
