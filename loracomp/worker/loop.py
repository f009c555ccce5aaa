"""The worker's loop: claim, prepare, answer, record. If it dies, its leases expire and its jobs are queued again.

Three threads work at the same time: while the model answers some jobs, others are claimed and prepared, and join them
between two of its steps; jobs that have ended are recorded. While the model is idle, its own thread claims and
prepares. Two more threads are independent of them: the heartbeat and the keeper.
There are four connections: one to claim, one to record, the heartbeat's and the keeper's.
"""

import logging
import random
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from threading import Event
from time import perf_counter

import psycopg

from loracomp import __version__, metrics
from loracomp.config import Settings
from loracomp.database.connections import Connection
from loracomp.engine.inflight import InFlight, lap
from loracomp.errors import LoracompError
from loracomp.records import Failure, Job
from loracomp.worker.endpoint import DatabaseSample
from loracomp.worker.handover import Handover
from loracomp.worker.heartbeat import Heartbeat, Presence
from loracomp.worker.keeper import Keeper
from loracomp.worker.leases import Leases, claim_jobs, nothing_waits, release_jobs
from loracomp.worker.link import DATABASE_AWAY, Link
from loracomp.worker.logfmt import logfmt
from loracomp.worker.record import fail_jobs, record
from loracomp.worker.stages import FAULT_OF_THE_WORKER, Engine, blame, isolate_failures, job_ids

_log = logging.getLogger(__name__)

LOOK_AGAIN_S = 60.0
"""Seconds after which a claim looks from the start of the queue again, however long that takes."""
GIVE_WAY_S = 0.01
"""Seconds that a busy worker leaves new jobs to idle ones."""


class Worker:
    """Claims jobs of one base model, answers them with an engine and records the results, until stopped or drained."""

    def __init__(
        self,
        url: str,
        engine: Engine,
        *,
        base_model: str,
        settings: Settings,
        device: str = "cpu",
        drain: bool = False,
        sample: DatabaseSample | None = None,
    ) -> None:
        """With `drain`, `run` returns when no job is due or waits for a retry. `device` is only shown in reports.

        `sample` receives the metrics of the database.
        """
        self._engine = engine
        self._base_model = base_model
        self._settings = settings
        self._drain = drain
        self._stopping = Event()
        self._wake = Event()
        self._handover = Handover(self._stopping)
        self._suspects: deque[InFlight] = deque()
        """Jobs of a step that raised: the engine gets one of them at a time."""
        self._records: deque[Future[None]] = deque()
        self._began = perf_counter()
        self._steps = False
        """Whether the model is in a step."""
        self._looked_at: float | None = None
        self._look_again = 0.0
        name, lease_s = settings.worker_name, settings.lease_s
        self._claiming, self._recording = (
            Link(url, f"loracomp {does} {name}", self._stopping, settings.answer_s) for does in ("worker", "recorder")
        )
        self._leases = Leases(lease_s)
        identity = {"name": name, "base_model": base_model, "device": device}
        self._presence = Presence(identity, self._activity, lease_s, sample)
        self._keeper = Keeper(
            Link(url, f"loracomp keeper {name}", self._stopping, settings.answer_s),
            worker=name,
            poll_s=settings.poll_s,
            embed=engine.embed,
            busy=lambda: bool(self._leases.held),
            changed=self._wake.set,
        )
        notified = {"loracomp_job": self._wake, "loracomp_keep": self._keeper.notified}
        self._heartbeat = Heartbeat(
            Link(url, f"loracomp heartbeat {name}", self._stopping, settings.answer_s, vectors=False),
            self._leases,
            self._presence,
            lease_s=lease_s,
            notified=notified if settings.listen and not drain else {},
        )
        metrics.WORKER_INFO.labels(name, base_model, device, __version__).set(1)
        metrics.JOBS_IN_HAND.set_function(lambda: len(self._leases.held))

    def run(self) -> None:
        """Work until `stop` is called or, with `drain`, no job is left."""
        _log.info(logfmt("started", worker=self._settings.worker_name, base_model=self._base_model))
        with ExitStack() as stack:
            stack.callback(self._claiming.close)
            stack.callback(self._recording.close)
            stack.enter_context(self._heartbeat)
            # After an error of the worker or Ctrl-C, give back the jobs still held, without counting the attempt.
            stack.callback(self.release)
            stack.enter_context(self._keeper)
            self._recorder, claimer = (
                stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix=does)) for does in ("record", "claim")
            )
            stack.callback(self.stop)
            self._work(claimer)
        _log.info(logfmt("stopped", worker=self._settings.worker_name))

    def _work(self, claimer: ThreadPoolExecutor) -> None:
        # While the model is idle, this thread itself claims and prepares: if two threads computed with torch, the
        # helper threads of both would compete for the same cores.
        while flights := self._handover.take() or self._next():
            self._handover.busy()
            claiming = claimer.submit(self._claim_meanwhile)
            try:
                self._answer(flights)
            finally:
                self._handover.free()
                self._wake.set()
            claiming.result()
        self._check_records(finished=True)

    def _claim_meanwhile(self) -> None:
        """While the model is busy, claim and prepare more jobs and offer them to it, as far as there is room."""
        while flights := self._next(meanwhile=True):
            # Give them back if the model has not taken them in time.
            if not self._handover.offer(flights, self._patience_s(flights)):
                self._give_back([flight.job for flight in flights])
                self._handover.wait_for_a_step()

    def _next(self, meanwhile: bool = False) -> Sequence[InFlight]:
        """The next jobs for the model; none after a stop or drain or, with `meanwhile`, if the model is free first."""
        while True:
            self._wake.clear()
            if self._stopping.is_set() or (meanwhile and self._handover.is_free):
                return ()
            held = self._leases.held
            try:
                if flights := self._prepared(held):
                    return flights
                if self._is_drained(held):
                    self.stop()
            except DATABASE_AWAY:
                return ()  # only once stopping
            self._wake.wait(self._settings.poll_s * random.uniform(0.5, 1.0))  # noqa: S311
            if meanwhile:
                # Let idle workers claim first.
                self._stopping.wait(GIVE_WAY_S)

    def _prepared(self, held: frozenset[Job]) -> Sequence[InFlight]:
        """Claim and prepare jobs for the model, as far as there is room; none if no job is due."""
        settings = self._settings
        room = min(settings.batch_size, settings.held_batches * settings.batch_size - len(held))
        if room <= 0:
            return ()
        started = perf_counter()
        jobs = self._claiming.call(
            lambda connection: self._claim(connection, room, held), give_up=self._stopping.is_set
        )
        if not jobs:
            return ()
        self._leases.hold(jobs)
        if len(jobs) < room:  # otherwise more are queued, and it helps nobody to be quick with these
            self._handover.expect()
        metrics.count_claim(jobs)
        flights = [InFlight(job, partial(self._leases.wants, job), started) for job in jobs]
        lap(flights, "claim")
        _log.info(logfmt("claimed", jobs=job_ids(flights)))
        unanswered: list[InFlight] = []
        isolate_failures(partial(self._prepare, unanswered), flights)
        if unanswered:
            self._give_back([flight.job for flight in unanswered])
        return [flight for flight in flights if flight not in unanswered]

    def _claim(self, connection: Connection, most: int, held: frozenset[Job]) -> tuple[Job, ...]:
        settings = self._settings
        started = perf_counter()
        from_start = started >= self._look_again
        try:
            jobs = claim_jobs(
                connection,
                worker=settings.worker_name,
                base_model=self._base_model,
                batch_size=most,
                lease_s=settings.lease_s,
                held=held,
                from_start=from_start,
            )
        finally:
            # Under an old snapshot a look from the start reads all entries that the queue ever had, so spend at most a
            # twentieth of the time on it. If it got no answer in time, the next claim does without.
            ended = perf_counter()
            if from_start:
                self._look_again = ended + min(20 * (ended - started), LOOK_AGAIN_S)
        self._looked_at = ended
        metrics.LAST_LOOK.set_to_current_time()
        return jobs

    def _is_drained(self, held: frozenset[Job]) -> bool:
        if not self._drain or held or not self._keeper.is_idle:
            return False
        return self._claiming.call(
            lambda connection: nothing_waits(connection, self._base_model), give_up=self._stopping.is_set
        )

    def _prepare(self, unanswered: list[InFlight], flights: Sequence[InFlight]) -> None:
        """Prepare jobs. If the database gives no answer for too long, they are added to `unanswered` instead."""
        if not (leased := self._still_leased(flights)):
            return
        until = perf_counter() + self._patience_s(leased)

        def give_up() -> bool:
            # If the connection still works after a database error such as a statement timeout, the jobs caused it.
            return self._claiming.answers() or self._stopping.is_set() or perf_counter() >= until

        try:
            self._claiming.call(lambda connection: self._engine.prepare(connection, leased), give_up)
        except DATABASE_AWAY:
            if self._claiming.answers():
                raise
            # Their leases would end while the worker still waits, although no job is to blame.
            unanswered.extend(leased)

    def _patience_s(self, flights: Sequence[InFlight]) -> float:
        """Seconds for which claimed jobs may wait: a lease, or half of the shortest timeout. Then others get them."""
        return min(self._settings.lease_s, *(flight.job.timeout_s / 2 for flight in flights))

    def _still_leased(self, flights: Sequence[InFlight]) -> list[InFlight]:
        return [flight for flight in flights if self._leases.still_leased(flight.job)]

    def _give_back(self, jobs: Sequence[Job]) -> None:
        """Release jobs that the model has not begun."""
        self._leases.end(jobs)
        with suppress(*DATABASE_AWAY):
            released = self._claiming.call(
                lambda connection: release_jobs(connection, jobs), give_up=self._stopping.is_set
            )
            self._leases.let_go(jobs)
            _note_released(released)

    def _answer(self, flights: Sequence[InFlight]) -> None:
        """Let the model answer jobs and those that arrive meanwhile; each is recorded when it ends."""
        self._join(flights)
        while self._engine or self._suspects:
            if not self._engine:
                self._engine.add(self._suspects.popleft())
            self._hand_over(self._step())
            if not self._suspects:
                self._join(self._handover.take())

    def _join(self, flights: Sequence[InFlight]) -> None:
        """Add prepared jobs to the engine; those that have failed or lost their lease are recorded instead."""
        going_on = [flight for flight in self._still_leased(flights) if flight.result is None]
        for flight in going_on:
            self._engine.add(flight)
        self._hand_over([flight for flight in flights if flight not in going_on])

    def _step(self) -> Sequence[InFlight]:
        """A step of the engine. If it raises, each of its jobs is tried again alone, so that only the culprit fails."""
        self._leases.go_on()
        self._steps = True
        try:
            return self._engine.step()
        except FAULT_OF_THE_WORKER:
            raise
        except Exception as error:
            left = self._engine.clear()
            blame(left, error)
        finally:
            self._steps = False
        if len(left) == 1:
            return left
        self._suspects.extend(left)
        return ()

    def _hand_over(self, ended: Sequence[InFlight]) -> None:
        """Hand jobs to the thread that records."""
        if ended:
            self._records.append(self._recorder.submit(self._record, ended))
        self._check_records()

    def _check_records(self, *, finished: bool = False) -> None:
        """Raise the errors of records that have ended; with `finished`, wait for all of them first."""
        while self._records and (finished or self._records[0].done()):
            self._records.popleft().result()

    def _record(self, flights: Sequence[InFlight]) -> None:
        """Record jobs' results, then their failures, and let all of them go."""
        jobs = [flight.job for flight in flights]
        self._leases.end(jobs)
        leased = self._still_leased(flights)
        isolate_failures(self._write, [each for each in leased if not isinstance(each.result, Failure | None)])
        self._fail(jobs, [failure for flight in flights if (failure := self._failure(flight))])
        self._leases.let_go(jobs)
        self._wake.set()
        _note_recorded(leased)

    def _write(self, flights: Sequence[InFlight]) -> None:
        lap(flights, "record", observed=False)
        jobs = [each.job for each in flights]
        written = [each.result for each in flights if not isinstance(each.result, Failure | None)]
        recorded = self._recording.call(lambda connection: record(connection, jobs, written))
        lap(flights, "record")
        for flight in flights:
            flight.recorded = flight.job.id in recorded

    def _failure(self, flight: InFlight) -> Failure | None:
        """Why a job was not answered; None if it was, or if it is not this worker's any more."""
        job, result = flight.job, flight.result
        if isinstance(result, Failure) and result.code != "lease_lost":
            return result
        if flight.recorded or not self._leases.is_over(job):
            return None
        return Failure(job.id, "timed_out", f"it took longer than its timeout_s of {job.timeout_s:g} s", retry=True)

    def _fail(self, jobs: Sequence[Job], failures: Sequence[Failure]) -> None:
        if not failures:
            return
        failed = self._recording.call(lambda connection: fail_jobs(connection, jobs, failures))
        for failure in failures:
            if failure.job_id in failed:
                metrics.count_failure(failure)
                _log.warning(
                    logfmt("failed", job=failure.job_id, code=failure.code, retry=failure.retry, error=failure.message)
                )

    def stop(self) -> None:
        """Claim no more jobs, and give back those that the model has not started. `run` returns after recording."""
        self._stopping.set()
        self._wake.set()
        self._handover.stop()
        self._keeper.stop()
        self._heartbeat.report_soon()

    def release(self) -> bool:
        """Give all held jobs back to the queue at once, without counting the attempt; later results are not recorded.

        If the worker was told to stop, it then reports that it has stopped.

        Returns False if the database can't be reached; then the leases expire by themselves.
        """
        # Leave the others to rescue_jobs: one of them may be why the worker hangs.
        if not (held := [job for job in self._leases.held if self._leases.still_leased(job)]):
            return True
        self._leases.end(held)
        try:
            released = self._heartbeat.run(
                lambda connection: release_jobs(connection, held), within_s=self._settings.answer_s
            )
        except (psycopg.Error, LoracompError, TimeoutError) as error:
            _log.error(logfmt("not_released", jobs=[job.id for job in held], error=error))
            return False
        _note_released(released)
        if self._stopping.is_set():  # one that hangs was not told to: it is shown as gone
            with suppress(psycopg.Error, LoracompError, TimeoutError):
                self._heartbeat.run(lambda connection: self._presence.report(connection, stopped=True), within_s=1)
        return True

    def hangs(self) -> bool:
        """Whether the device is presumed hung: for `hang_s` seconds all leases are lost and the model ended no step.

        Between two steps the time in which the worker waits for the database does not count, for example while a lock
        keeps jobs from being routed. Call this several times a second.
        """
        if not self._steps and (self._claiming.waits or self._recording.waits):
            self._leases.go_on()
        return self._leases.stalled_s() >= self._settings.hang_s

    def problems(self) -> dict[str, str]:
        """Reasons why the worker can't answer jobs, by check (database, schema, claims); empty if it is ready."""
        found = dict(self._presence.problems)
        since = perf_counter() - (self._looked_at or self._began)
        # A worker with no room for more jobs does not ask, at most until the jobs that it holds time out.
        longest = max((job.timeout_s for job in self._leases.held), default=0.0)
        if self._stopping.is_set():
            found["claims"] = "the worker is stopping"
        elif since > 2 * self._settings.lease_s + self._settings.poll_s + longest:
            found["claims"] = f"the worker has not asked for jobs for {since:.0f} s"
        return found

    def _activity(self) -> dict[str, object]:
        """The worker's current status for its report."""
        doing = "stopping" if self._stopping.is_set() else "busy" if self._leases.held else "idle"
        looked_s = None if self._looked_at is None else perf_counter() - self._looked_at
        return {"status": doing, "looked_s": looked_s}


def _note_released(ids: Collection[int]) -> None:
    metrics.JOBS_RELEASED.inc(len(ids))
    _log.info(logfmt("released", jobs=sorted(ids)))


def _note_recorded(flights: Sequence[InFlight]) -> None:
    if dropped := [flight for flight in flights if flight.recorded is False]:
        _log.warning(logfmt("fence_void", jobs=job_ids(dropped)))
    metrics.RESULTS_DROPPED.inc(len(dropped))
    if recorded := [flight for flight in flights if flight.recorded]:
        metrics.count_recorded([each.result for each in recorded])
        steps = {step: round(ms) for step, ms in recorded[0].timings.items()}
        _log.info(logfmt("recorded", jobs=job_ids(recorded), **steps))
