"""The claimer: claims jobs and prepares them for the model, as long as the worker has room for more."""

import logging
import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import Event
from time import perf_counter

from loracomp import metrics
from loracomp.config import Settings
from loracomp.database.connections import Connection
from loracomp.engine.inflight import InFlight, lap
from loracomp.records import Job
from loracomp.worker.handover import Handover
from loracomp.worker.leases import Leases, claim_jobs, note_released, release_claim, release_jobs
from loracomp.worker.link import DATABASE_AWAY, Link, may_be_the_jobs_fault
from loracomp.worker.logfmt import logfmt
from loracomp.worker.pace import Pace
from loracomp.worker.stages import EngineInterface, check_device, isolate_failures, job_ids

_log = logging.getLogger(__name__)

LOOK_AGAIN_S = 60.0
"""Seconds after which a claim makes a full scan of the queue again, however long that takes."""
GIVE_WAY_S = 0.01
"""Seconds for which a busy worker leaves new jobs to idle workers."""


class Claimer:
    """Claims jobs of one base model. `next` runs in only one thread at a time: in the model's thread while the model is
    idle, otherwise in the claimer's."""

    def __init__(
        self,
        link: Link,
        engine: EngineInterface,
        leases: Leases,
        handover: Handover,
        *,
        base_model: str,
        settings: Settings,
        stopping: Event,
        is_drained: Callable[[Connection], bool],
        stop: Callable[[], object],
    ) -> None:
        """If the worker holds no job and finds none, and `is_drained(connection)` is true, `stop` is called."""
        self._link = link
        self._engine = engine
        self._leases = leases
        self._handover = handover
        self._base_model = base_model
        self._settings = settings
        self._stopping = stopping
        self._is_drained = is_drained
        self._stop = stop
        self._look_again = 0.0
        self._overlooks = False
        """Whether the last claim made no full scan of the queue, so that jobs may be due that it did not find."""
        self._pace = Pace()
        self._lost: int | None = None
        """Token of a claim that got no reply: it may have leased jobs all the same."""
        self.wake = Event()
        """Set this event when there may be jobs to claim, or room for them."""
        self.looked_at: float | None = None
        """When the worker last asked for jobs; None if never."""

    def claim_meanwhile(self) -> None:
        """While the model is busy, claim and prepare more jobs and offer them to it, as long as there is room."""
        while flights := self.next(meanwhile=True):
            while flights and not self._handover.offer(flights, self._patience_s(flights)):
                late, flights = self._late(flights)
                self._give_back(late)
            if not flights:  # all were given back, so don't claim them again at once
                self._handover.wait_for_a_step()

    def next(self, meanwhile: bool = False) -> Sequence[InFlight]:
        """The next jobs for the model. Returns none after a stop or drain, or, with `meanwhile`, as soon as the model
        becomes idle."""
        while True:
            self.wake.clear()
            if self._stopping.is_set() or (meanwhile and self._handover.is_free):
                return ()
            held = self._leases.held
            try:
                if flights := self._claim_and_prepare(held):
                    return flights
                if not held and self._link.call(self._is_drained, self._is_stopping):
                    self._stop()
            except DATABASE_AWAY:
                return ()  # stop only once
            self._stopping.wait(self._pace.pause_s())
            self.wake.wait(self._pause_s())
            if meanwhile:
                # Let idle workers claim first.
                self._stopping.wait(GIVE_WAY_S)

    def release_lost(self) -> None:
        """Release the jobs of a claim that got no reply before the worker stopped. `next` must not run meanwhile."""
        if (token := self._lost) is not None:
            with suppress(*DATABASE_AWAY):  # their leases expire
                note_released(self._link.call(lambda connection: release_claim(connection, token), lambda _: True))

    def _pause_s(self) -> float:
        """Seconds after which to look for jobs again, if nothing wakes the claimer before."""
        pause_s = self._settings.poll_s * random.uniform(0.5, 1.0)  # noqa: S311
        return min(pause_s, max(0.0, self._look_again - perf_counter())) if self._overlooks else pause_s

    def _claim_and_prepare(self, held: frozenset[Job]) -> Sequence[InFlight]:
        """Claim and prepare jobs for the model, as long as there is room; none if no job is due."""
        settings = self._settings
        self._overlooks = False
        most = min(settings.batch_size, settings.held_batches * settings.batch_size - len(held))
        if most <= 0:
            return ()
        started = perf_counter()
        jobs = self._link.call(lambda connection: self._claim(connection, most, held), self._is_stopping)
        if not jobs:
            return ()
        self._leases.hold(jobs)
        if len(jobs) < most:  # with a full batch more jobs are queued, so claiming them at once gains nothing
            self._handover.expect()
        metrics.count_claim(jobs)
        flights = [InFlight(job, partial(self._leases.wants, job), started) for job in jobs]
        lap(flights, "claim")
        _log.info(logfmt("claimed", jobs=job_ids(flights)))
        unanswered: list[InFlight] = []
        isolate_failures(partial(self._prepare, unanswered), flights)
        if unanswered:
            self._give_back(unanswered)
        return [flight for flight in flights if flight not in unanswered]

    def _claim(self, connection: Connection, most: int, held: frozenset[Job]) -> tuple[Job, ...]:
        started = perf_counter()
        from_start = started >= self._look_again
        if self._lost is not None:
            note_released(release_claim(connection, self._lost))
        self._lost = secrets.randbits(63)
        try:
            jobs = claim_jobs(
                connection,
                worker=self._settings.worker_name,
                base_model=self._base_model,
                batch_size=most,
                lease_s=self._settings.lease_s,
                held=held,
                from_start=from_start,
                token=self._lost,
            )
            self._lost = None
            self._overlooks = not from_start
        finally:
            # If an old snapshot keeps dead tuples from being removed, a full scan reads all entries that the queue has
            # had since, so spend at most a twentieth of the time on full scans. If a scan got no answer in time, the
            # next claim makes none.
            ended = perf_counter()
            if from_start:
                self._look_again = ended + min(20 * (ended - started), LOOK_AGAIN_S)
        self.looked_at = ended
        metrics.LAST_LOOK.set_to_current_time()
        return jobs

    def _prepare(self, unanswered: list[InFlight], flights: Sequence[InFlight]) -> None:
        """Prepare jobs. Jobs that can't wait any longer for the database are added to `unanswered` instead."""
        if not (leased := [flight for flight in flights if self._leases.still_leased(flight.job)]):
            return

        def give_up(error: Exception) -> bool:
            return self._is_fault_of(leased, error) or self._patience_s(leased) == 0

        try:
            self._link.call(lambda connection: self._engine.prepare(connection, leased), give_up)
        except DATABASE_AWAY as error:
            if self._is_fault_of(leased, error):
                raise
            # Their leases would end while the worker still waits, although no job caused the wait.
            late, others = self._late(leased)
            unanswered.extend(late)
            self._prepare(unanswered, others)
        except Exception:
            check_device(self._engine, self._leases, leased)
            raise

    def _is_fault_of(self, flights: Sequence[InFlight], error: Exception) -> bool:
        """Whether one of these jobs may have caused an error of the database: the connection still works."""
        return may_be_the_jobs_fault(error, flights) and self._link.is_alive()

    def _is_stopping(self, _error: Exception) -> bool:
        """Whether to give up instead of waiting for the database."""
        return self._stopping.is_set()

    def _patience_s(self, flights: Sequence[InFlight]) -> float:
        """Seconds for which these claimed jobs may wait before one of them must go to another worker.

        Each may wait for a lease, or half of its timeout if that is shorter; none does when the worker stops.
        """
        if self._stopping.is_set():
            return 0.0
        lease_s = self._settings.lease_s
        return max(0.0, min(min(lease_s, each.job.timeout_s / 2) - self._leases.held_s(each.job) for each in flights))

    def _late(self, flights: Sequence[InFlight]) -> tuple[list[InFlight], list[InFlight]]:
        """The jobs that can't wait any longer, and the others."""
        late = [flight for flight in flights if self._patience_s([flight]) == 0]
        return late, [flight for flight in flights if flight not in late]

    def _give_back(self, flights: Sequence[InFlight]) -> None:
        """Release jobs that the model has not begun."""
        jobs = [flight.job for flight in flights]
        self._leases.mark_ending(jobs)
        with suppress(*DATABASE_AWAY):
            released = self._link.call(lambda connection: release_jobs(connection, jobs), self._is_stopping)
            self._leases.let_go(jobs)
            note_released(released)
