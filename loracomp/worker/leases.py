"""Leases of jobs: claims, renews and gives them back, and keeps track of leases that are ending or lost."""

import logging
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from threading import Lock
from time import monotonic

from loracomp import metrics
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.records import KINDS, Job
from loracomp.worker.logfmt import logfmt


def claim_jobs(
    connection: Connection,
    *,
    worker: str,
    base_model: str,
    batch_size: int,
    lease_s: float,
    held: Collection[Job] = (),
    from_start: bool = True,
    token: int | None = None,
) -> tuple[Job, ...]:
    """Lease up to `batch_size` due jobs of a base model for `lease_s` seconds, in the order of their places.

    `held` are the jobs that the worker already holds: if there are any, no job that must run alone is claimed.
    `from_start`: make a full scan from the start of the queue, instead of starting at the last claimed place, after
    which new jobs are. `token`: a random number that becomes the lease token, with which `release_claim` can give back
    the jobs if the reply to the claim is lost.
    """
    arguments = {
        "worker": worker,
        "base_model": base_model,
        "batch_size": batch_size,
        "lease": timedelta(seconds=lease_s),
        "held_ids": [job.id for job in held],
        "from_start": from_start,
        "token": token,
        "kinds": list(KINDS),
    }
    return tuple(
        Job(
            **{
                **row,
                "choices": row["choices"] and tuple(row["choices"]),
                "descriptions": row["descriptions"] and tuple(row["descriptions"]),
                "text_at": row["text_at"] and (row["text_at"].lower - 1, row["text_at"].upper - 1),
                "stop": tuple(row["stop"]),
            }
        )
        for row in connection.execute(QUERIES["claim_jobs"], arguments)
    )


def renew_leases(connection: Connection, jobs: Sequence[Job], lease_s: float) -> set[int]:
    """Renew leases for `lease_s` seconds, at most to twice a job's timeout; returns the ids of the jobs still held."""
    arguments = {**_fences(jobs), "lease": timedelta(seconds=lease_s)}
    return {row["id"] for row in connection.execute(QUERIES["renew_leases"], arguments)}


def release_jobs(connection: Connection, jobs: Sequence[Job]) -> set[int]:
    """Queue jobs again without counting the attempt; returns the ids of the jobs that were still held."""
    return {row["id"] for row in connection.execute(QUERIES["release_jobs"], _fences(jobs))}


def release_claim(connection: Connection, token: int) -> set[int]:
    """Queue the jobs of a claim again that got no reply; returns their ids."""
    return {row["id"] for row in connection.execute(QUERIES["release_claim"], {"token": token})}


def note_released(ids: Collection[int]) -> None:
    """Count and log jobs that were released."""
    metrics.JOBS_RELEASED.inc(len(ids))
    _log.info(logfmt("released", jobs=sorted(ids)))


def what_waits(connection: Connection, base_model: str) -> tuple[bool, bool]:
    """Whether something ends soon by itself, and whether jobs are due or rows of declarations wait for the keeper.

    The former are jobs that wait for the time of a retry, and measurements and rows of declarations that other workers
    run. Other jobs that other workers run don't count, nor do jobs that are scheduled for later. Raises psycopg's
    errors.
    """
    (row,) = connection.execute(QUERIES["what_waits"], {"base_model": base_model})
    return row["soon"], row["others"]


def _fences(jobs: Sequence[Job]) -> dict[str, list[int]]:
    return {"ids": [job.id for job in jobs], "tokens": [job.lease_token for job in jobs]}


_log = logging.getLogger(__name__)


class Leases:
    """The leases of one worker. Thread-safe; only `renew` accesses the database.

    A lease that could not be renewed is lost. Either the job was cancelled or taken over, so that its token is void, or
    the job's time is over. In the second case the token stays valid until the keeper rescues the job, so the worker can
    use it to end the job. If this worker itself claims a job again that it still holds, the older lease is lost.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._held: frozenset[Job] = frozenset()
        self._ending: frozenset[Job] = frozenset()
        self._lost: frozenset[Job] = frozenset()
        self._held_since: dict[Job, float] = {}
        self._stalled_since: float | None = None
        self._went_on_at = 0.0
        self._lock = Lock()
        self.let_go_at = monotonic()
        """When jobs were last let go."""

    @property
    def held(self) -> frozenset[Job]:
        """The jobs that are claimed and not yet recorded or given back."""
        return self._held

    def hold(self, jobs: Sequence[Job]) -> None:
        """Add jobs, whose leases are renewed until `let_go`."""
        claimed = {job.id for job in jobs}
        self._note_lost({job for job in self._held if job.id in claimed})
        with self._lock:
            self._held |= frozenset(jobs)
            self._held_since |= dict.fromkeys(jobs, monotonic())
            self._look()

    def mark_ending(self, jobs: Iterable[Job]) -> None:
        """Mark jobs that are just being recorded or given back, so that a failed renewal does not count as a lost
        lease."""
        with self._lock:
            self._ending |= frozenset(jobs)

    def let_go(self, jobs: Iterable[Job]) -> None:
        """Remove jobs; their leases are not renewed any more."""
        with self._lock:
            self._held -= frozenset(jobs)
            self.let_go_at = monotonic()
            self._ending &= self._held
            self._lost &= self._held
            self._held_since = {job: since for job, since in self._held_since.items() if job in self._held}
            self._look()

    def forsake(self, jobs: Iterable[Job]) -> None:
        """Count jobs as lost, so that they are neither recorded nor given back: their leases are left to expire."""
        with self._lock:
            self._lost |= frozenset(jobs) & self._held
            self._look()

    def held_s(self, job: Job) -> float:
        """Seconds since the job was claimed; 0 if it is not held."""
        now = monotonic()
        return now - self._held_since.get(job, now)

    def wants(self, job: Job) -> bool:
        """Whether the job's answer is still needed, because its lease is not known to be lost and its time is not over.

        The model's thread calls this between its steps; the time of the call shows that the model does not hang.
        """
        self.go_on()
        return job not in self._lost and not self.is_over(job)

    def go_on(self) -> None:
        """Note that the model does not hang at this moment."""
        self._went_on_at = monotonic()

    def is_over(self, job: Job) -> bool:
        """Whether a job has been held for longer than its timeout."""
        return self.held_s(job) >= job.timeout_s

    def stalled_s(self) -> float:
        """Seconds since all held leases were lost, or since the last `go_on` if that was later.

        0 if any lease is valid or no job is held. A large value means that the model is presumed hung.
        """
        since = self._stalled_since
        return 0.0 if since is None else min(monotonic() - since, self.silent_s())

    def silent_s(self) -> float:
        """Seconds since the last `go_on`."""
        return monotonic() - self._went_on_at

    def still_leased(self, job: Job) -> bool:
        """Whether the job's lease is not known to be lost."""
        return job not in self._lost

    def renew(self, connection: Connection) -> None:
        """Renew the leases of all held jobs, and remember which are lost."""
        jobs = list(self._held)
        if not jobs:
            return
        renewed = renew_leases(connection, jobs, self._lease_s)
        self._note_lost({job for job in jobs if job.id not in renewed})

    def _note_lost(self, jobs: set[Job]) -> None:
        with self._lock:
            # Jobs that were just recorded or given back have no lease any more, but they are not lost.
            new = (jobs & self._held) - self._lost - self._ending
            self._lost |= new
            self._look()
        metrics.LEASES_LOST.inc(len(new))
        if new:
            _log.warning(logfmt("leases_lost", jobs=sorted(job.id for job in new)))

    def _look(self) -> None:
        stalled = bool(self._held) and self._held == self._lost
        self._stalled_since = (self._stalled_since or monotonic()) if stalled else None
