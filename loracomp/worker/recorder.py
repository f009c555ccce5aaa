"""The recorder: a thread that writes the results and failures of jobs that have ended, and lets the jobs go."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from loracomp import metrics
from loracomp.engine.inflight import InFlight, lap
from loracomp.records import Failure, Job
from loracomp.worker.leases import Leases
from loracomp.worker.link import Link
from loracomp.worker.logfmt import logfmt
from loracomp.worker.record import fail_jobs, record
from loracomp.worker.stages import isolate_failures, job_ids

_log = logging.getLogger(__name__)


class Recorder:
    """Records jobs in a thread of its own, in the order in which they ended, within a `with` block."""

    def __init__(self, link: Link, leases: Leases, let_go: Callable[[], object]) -> None:
        """`let_go` is called after jobs were let go, because there is room for others."""
        self._link = link
        self._leases = leases
        self._let_go = let_go
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._records: deque[Future[None]] = deque()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()

    def add(self, ended: Sequence[InFlight]) -> None:
        """Record jobs that have ended, in the recorder's thread. Raises the errors of records that have ended."""
        if ended:
            self._records.append(self._thread.submit(self._record, ended))
        self.check()

    def check(self, *, finished: bool = False) -> None:
        """Raise the errors of records that have ended; with `finished`, wait for all of them first."""
        while self._records and (finished or self._records[0].done()):
            self._records.popleft().result()

    def _record(self, flights: Sequence[InFlight]) -> None:
        """Record jobs' results, then their failures, and let all of them go."""
        jobs = [flight.job for flight in flights]
        self._leases.mark_ending(jobs)
        leased = [flight for flight in flights if self._leases.still_leased(flight.job)]
        isolate_failures(self._write, [each for each in leased if not isinstance(each.result, Failure | None)])
        self._fail(jobs, [failure for flight in flights if (failure := self._failure(flight))])
        self._leases.let_go(jobs)
        self._let_go()
        _note_recorded(leased)

    def _write(self, flights: Sequence[InFlight]) -> None:
        lap(flights, "record", observed=False)
        jobs = [each.job for each in flights]
        written = [each.result for each in flights if not isinstance(each.result, Failure | None)]
        recorded = self._link.call(lambda connection: record(connection, jobs, written))
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
        failed = self._link.call(lambda connection: fail_jobs(connection, jobs, failures))
        for failure in failures:
            if failure.job_id in failed:
                metrics.count_failure(failure)
                _log.warning(
                    logfmt("failed", job=failure.job_id, code=failure.code, retry=failure.retry, error=failure.message)
                )


def _note_recorded(flights: Sequence[InFlight]) -> None:
    if dropped := [flight for flight in flights if flight.recorded is False]:
        _log.warning(logfmt("fence_void", jobs=job_ids(dropped)))
    metrics.RESULTS_DROPPED.inc(len(dropped))
    if recorded := [flight for flight in flights if flight.recorded]:
        metrics.count_recorded([each.result for each in recorded])
        steps = {step: round(ms) for step, ms in recorded[0].timings.items()}
        _log.info(logfmt("recorded", jobs=job_ids(recorded), **steps))
