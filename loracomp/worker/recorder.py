"""The record step: writes the results and failures of jobs while their lease is valid. A thread of the worker runs
it."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

import orjson
from psycopg.types.json import Jsonb

from loracomp import metrics
from loracomp.database.connections import Connection, composite, fields_of, know_traces, storable
from loracomp.database.queries import QUERIES
from loracomp.engine.evidence import record_evidence
from loracomp.engine.inflight import SHARED, InFlight, Result, lap
from loracomp.engine.measuring import KIND, Measurement, record_measurements
from loracomp.records import Failure, Job, Prediction, Routed
from loracomp.worker.leases import Leases, note_released, release_jobs
from loracomp.worker.link import DATABASE_AWAY, Link, may_be_the_jobs_fault
from loracomp.worker.logfmt import logfmt
from loracomp.worker.stages import isolate_failures, job_ids

_log = logging.getLogger(__name__)

TRIES = 2
"""How often results are written, while the database answers, before the jobs are held to cause the error."""
CODE, MESSAGE = 100, 10_000
"""Maximum number of characters of an error that the database takes. A message may quote a text of any length."""
_NOTHING_PREDICTED = fields_of(Prediction(output="")) | {"output": None}
"""What is stored for a job of kind 'route'."""


def record(connection: Connection, flights: Sequence[InFlight]) -> set[int]:
    """Write the results of jobs and end these, in one transaction; returns the ids of jobs whose lease was valid.

    Either all results are measurements or none is. After measurements it fits and writes what these say about tasks
    without an adapter, which may take a second.
    """
    measurements = [each.result for each in flights if isinstance(each.result, Measurement)]
    if not measurements:
        return record_predictions(connection, flights)
    ids = record_measurements(connection, [each.job for each in flights], measurements)
    # For all of them, because an earlier call may have written some before its connection broke.
    record_evidence(connection, [each.job_id for each in measurements])
    return ids


def record_predictions(connection: Connection, flights: Sequence[InFlight]) -> set[int]:
    """Write the predictions and traces of jobs of kind 'predict' and 'route', and end these jobs, in one transaction.

    Returns the ids of jobs whose lease was still valid. All jobs must have been answered by the same engine. Raises
    psycopg.DataError or IntegrityError, and writes nothing, if one of the predictions can't be stored.
    """
    if not flights:
        return set()
    know_traces(connection)
    made = composite(connection, "predicted")
    predictions = [
        made(
            job_id=flight.job.id,
            lease_token=flight.job.lease_token,
            **_columns(flight.result),
            composition_digest=flight.composition_digest,
            batch_size=flight.batch_size,
            timings=Jsonb({step: round(ms, 3) for step, ms in flight.timings.items()}, dumps=orjson.dumps),
        )
        for flight in flights
    ]
    traces = [flight.decision.trace for flight in flights if isinstance(flight.decision, Routed)]
    (versions,) = {flight.versions for flight in flights}
    given = {"predictions": predictions, "traces": traces, **fields_of(versions)}
    return {row["id"] for row in connection.execute(QUERIES["record_predictions"], given)}


def _columns(result: Result | None) -> dict[str, Any]:
    if isinstance(result, Prediction):
        return fields_of(result) | {"output": storable(result.output)}
    return _NOTHING_PREDICTED


def fail_jobs(connection: Connection, jobs: Sequence[Job], failures: Sequence[Failure]) -> set[int]:
    """End jobs as failed, or queue them again if a retry may help; returns the ids of jobs whose lease was valid."""
    tokens = {job.id: job.lease_token for job in jobs}
    arguments = {
        "ids": [failure.job_id for failure in failures],
        "tokens": [tokens[failure.job_id] for failure in failures],
        "codes": [failure.code[:CODE] for failure in failures],
        "messages": [storable(failure.message)[:MESSAGE] for failure in failures],
        "retries": [failure.retry for failure in failures],
    }
    return {row["id"] for row in connection.execute(QUERIES["fail_jobs"], arguments)}


class Recorder:
    """Records jobs in a thread of its own, in the order in which they ended, within a `with` block."""

    def __init__(self, link: Link, leases: Leases, *, let_go: Callable[[], object], stop: Callable[[], object]) -> None:
        """`let_go` is called after jobs have been recorded, because there is room for others then. `stop` is called
        after an error that would occur again with all later jobs.
        """
        self._link = link
        self._leases = leases
        self._let_go = let_go
        self._stop = stop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._records: deque[Future[None]] = deque()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()

    def add(self, ended: Sequence[InFlight]) -> None:
        """Record jobs that have ended, in the recorder's thread. Raises the errors of records that have ended."""
        if ended:
            self._records.append(self._thread.submit(self._record_or_stop, ended))
        self.check()

    def check(self, *, finished: bool = False) -> None:
        """Raise the errors of records that have ended; with `finished`, wait for all of them first."""
        while self._records and (finished or self._records[0].done()):
            self._records.popleft().result()

    def _record_or_stop(self, flights: Sequence[InFlight]) -> None:
        """Stop the worker if a record raises, because an idle worker would notice that only when other jobs end."""
        try:
            self._record(flights)
        except Exception as error:
            _log.error(logfmt("not_recorded", jobs=job_ids(flights), error=error))
            self._stop()
            raise

    def _record(self, flights: Sequence[InFlight]) -> None:
        """Record jobs' results, then their failures, and let all of them go."""
        jobs = [flight.job for flight in flights]
        self._leases.mark_ending(jobs)
        leased = [flight for flight in flights if self._leases.still_leased(flight.job)]
        isolate_failures(self._write, [each for each in leased if isinstance(each.result, Prediction | Routed)])
        isolate_failures(self._write, [each for each in leased if isinstance(each.result, Measurement)])
        self._fail([(flight.job, failure) for flight in flights if (failure := self._failure(flight))])
        self._release([flight.job for flight in flights if self._has_only_waited(flight)])
        self._leases.let_go(jobs)
        self._let_go()
        _note_recorded(leased)

    def _write(self, flights: Sequence[InFlight]) -> None:
        lap(flights, "record", observed=False)
        recorded = self._call(flights, lambda connection: record(connection, flights))
        lap(flights, "record")
        for flight in flights:
            flight.recorded = flight.job.id in recorded

    def _failure(self, flight: InFlight) -> Failure | None:
        """Why a job was not answered; None if it was answered, or if this worker no longer holds it."""
        job, result = flight.job, flight.result
        if isinstance(result, Failure) and result.code != "lease_lost":
            return result
        if flight.recorded or not self._leases.is_over(job) or self._has_only_waited(flight):
            return None
        return Failure(job.id, "timed_out", f"it took longer than its timeout_s of {job.timeout_s:g} s", retry=True)

    def _has_only_waited(self, flight: InFlight) -> bool:
        """Whether a job's time is over because others took so long: the model has not begun it, or has left the rest of
        a measurement for later.

        Not if its own work took half of its time, because that would happen again each time.
        """
        worked_s = flight.worked_s + sum(flight.timings.get(step, 0.0) for step in SHARED) / 1000
        is_slow = worked_s >= flight.job.timeout_s / 2
        has_waited = flight.job.kind == KIND or not flight.begun
        return has_waited and not is_slow and self._leases.is_over(flight.job)

    def _release(self, jobs: Sequence[Job]) -> None:
        """Queue jobs again without counting the attempt."""
        for job in jobs:
            with suppress(*DATABASE_AWAY):  # its lease expires
                note_released(self._call([job], partial(release_jobs, jobs=[job])))

    def _call(self, written: Sequence[object], operation: Callable[[Connection], set[int]]) -> set[int]:
        """Run `operation`, and run it again while the database is away.

        If it fails although the database answers, the values that it writes are the cause. Then this raises, but only
        after a second try, because the connection may have been cut, or the server may have been slow for a moment.
        """
        failures = 0

        def give_up(error: Exception) -> bool:
            nonlocal failures
            failures += may_be_the_jobs_fault(error, written) and self._link.database_answers()
            return failures == TRIES

        return self._link.call(operation, give_up)

    def _fail(self, failing: Sequence[tuple[Job, Failure]]) -> None:
        if not failing:
            return
        jobs = [job for job, _ in failing]
        failures = [failure for _, failure in failing]
        try:
            failed = self._call(failures, lambda connection: fail_jobs(connection, jobs, failures))
        except DATABASE_AWAY as error:
            if len(failing) > 1:
                for each in failing:
                    self._fail([each])
            else:  # its lease expires
                _log.error(logfmt("not_failed", job=failures[0].job_id, error=error))
            return
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
