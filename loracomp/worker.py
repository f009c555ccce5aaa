"""The worker's loop: claim, pipeline, record. What it holds is never lost, whatever happens to it."""

import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from threading import Event
from time import perf_counter
from typing import Any, Protocol

import psycopg

from loracomp.config import Settings
from loracomp.db import Connection, connect
from loracomp.errors import JobError, LoracompError, SchemaMismatchError
from loracomp.hint import Hint
from loracomp.leases import Heartbeat
from loracomp.link import DATABASE_AWAY, Link
from loracomp.logfmt import job_ids, logfmt
from loracomp.records import Failure, Job
from loracomp.steps.claim import claim_jobs, queue_is_empty, release_jobs
from loracomp.steps.record import fail_jobs, record_predictions

_log = logging.getLogger(__name__)


class BatchResult(Protocol):
    """What a batch came to: rows of loracomp.prediction (without worker, attempt and fence), and failures."""

    @property
    def predictions(self) -> Sequence[Mapping[str, Any]]: ...  # noqa: D102
    @property
    def failures(self) -> Sequence[Failure]: ...  # noqa: D102


class Pipeline(Protocol):
    """Answers a batch of jobs; the connection is in autocommit mode and lent for the call."""

    def run(self, connection: Connection, jobs: Sequence[Job]) -> BatchResult: ...  # noqa: D102


class Worker:
    """Claims jobs of one base model, answers them by a pipeline, records what came out; until stopped or drained."""

    def __init__(
        self, url: str, pipeline: Pipeline, *, base_model: str, settings: Settings, drain: bool = False
    ) -> None:
        """With `drain`, `run` returns when no job is due and none waits to be tried again."""
        self._url = url
        self._pipeline = pipeline
        self._base_model = base_model
        self._settings = settings
        self._drain = drain
        self._stopping = Event()
        self._wake = Event()
        self._heartbeat = Heartbeat(url, settings.lease_s)
        self._link = Link(url, f"loracomp worker {settings.worker_name}"[:63], self._stopping)

    def run(self) -> None:
        """Work until `stop` is called or, with drain, nothing is left to do."""
        _log.info(logfmt("started", worker=self._settings.worker_name, base_model=self._base_model))
        with ExitStack() as stack:
            stack.callback(self._link.close)
            stack.enter_context(self._heartbeat)
            if self._settings.listen and not self._drain:
                stack.enter_context(Hint(self._url, self._wake))
            while not self._stopping.is_set():
                self._step()
        _log.info(logfmt("stopped", worker=self._settings.worker_name))

    def stop(self) -> None:
        """Claim nothing more; `run` returns when the running batch is recorded."""
        self._stopping.set()
        self._wake.set()

    def release(self) -> bool:
        """Give what is held back to the queue at once, uncharged; a result that comes later finds its fence void.

        False where the database is away: the leases run out by themselves.
        """
        if not (held := self._heartbeat.held):
            return True
        try:
            with connect(self._url, application_name="loracomp release", vectors=False) as connection:
                released = release_jobs(connection, held)
        except (psycopg.Error, LoracompError) as error:
            _log.error(logfmt("not_released", jobs=job_ids(held), error=error))
            return False
        _log.info(logfmt("released", jobs=",".join(map(str, sorted(released)))))
        return True

    def _step(self) -> None:
        self._wake.clear()
        try:
            jobs = self._link.call(self._claim, give_up=self._stopping.is_set)
            drained = not jobs and self._drain and self._link.call(self._queue_is_empty, give_up=self._stopping.is_set)
        except DATABASE_AWAY:
            return  # only once stopping
        if jobs:
            self._work(jobs)
        elif drained:
            self.stop()
        elif not self._stopping.is_set():
            self._wake.wait(self._settings.poll_s * random.uniform(0.5, 1.0))  # noqa: S311

    def _claim(self, connection: Connection) -> tuple[Job, ...]:
        settings = self._settings
        return claim_jobs(
            connection,
            worker=settings.worker_name,
            base_model=self._base_model,
            batch_size=settings.batch_size,
            lease_s=settings.lease_s,
        )

    def _queue_is_empty(self, connection: Connection) -> bool:
        return queue_is_empty(connection, self._base_model)

    def _work(self, jobs: Sequence[Job]) -> None:
        _log.info(logfmt("claimed", jobs=job_ids(jobs)))
        with self._heartbeat.holding(jobs):
            try:
                self._answer(jobs)
            except BaseException:
                # The worker itself is at fault, or Ctrl-C: no job is charged.
                self.release()
                raise

    def _answer(self, jobs: Sequence[Job]) -> None:
        started = perf_counter()
        try:
            result = self._run_pipeline(jobs)
            recorded = self._record(jobs, result)
        except _FAULT_OF_THE_WORKER:
            raise
        except Exception as error:
            self._blame(jobs, error)
            return
        seconds = round(perf_counter() - started, 3)
        _log.info(logfmt("recorded", jobs=",".join(map(str, sorted(recorded))), seconds=seconds))

    def _run_pipeline(self, jobs: Sequence[Job]) -> BatchResult:
        # An error of the database is the batch's own, such as a statement timeout, where the connection still answers.
        return self._link.call(lambda connection: self._pipeline.run(connection, jobs), give_up=self._link.answers)

    def _record(self, jobs: Sequence[Job], result: BatchResult) -> set[int]:
        """Write what came out, failures after predictions; ids that were recorded as succeeded."""
        wanted = {job.id for job in jobs} - self._heartbeat.lost
        predictions = [row for row in result.predictions if row["job_id"] in wanted]
        failures = [failure for failure in result.failures if failure.job_id in wanted]
        answered = {row["job_id"] for row in predictions}
        unanswered = wanted - answered - {failure.job_id for failure in failures}
        failures += [
            Failure(job_id, "internal_error", "the pipeline gave no answer", retry=True) for job_id in unanswered
        ]
        recorded: set[int] = set()
        if predictions:
            recorded = self._link.call(lambda connection: record_predictions(connection, jobs, predictions))
        if dropped := answered - recorded:
            _log.warning(logfmt("fence_void", jobs=",".join(map(str, sorted(dropped)))))
        self._fail(jobs, failures)
        return recorded

    def _fail(self, jobs: Sequence[Job], failures: Sequence[Failure]) -> None:
        if failures:
            self._link.call(lambda connection: fail_jobs(connection, jobs, failures))
        for failure in failures:
            _log.warning(
                logfmt("failed", job=failure.job_id, code=failure.code, retry=failure.retry, error=failure.message)
            )

    def _blame(self, jobs: Sequence[Job], error: Exception) -> None:
        """Fail the job that raised; a batch is tried again job by job, so that the culprit alone fails."""
        if len(jobs) > 1:
            _log.warning(logfmt("batch_raised", jobs=job_ids(jobs), error=repr(error)))
            for job in jobs:
                if job.id not in self._heartbeat.lost:
                    self._answer([job])
        elif isinstance(error, JobError):
            self._fail(jobs, [Failure(jobs[0].id, error.code, str(error), error.retry)])
        else:
            _log.error(logfmt("job_raised", jobs=job_ids(jobs)), exc_info=error)
            self._fail(jobs, [Failure(jobs[0].id, "internal_error", f"{type(error).__name__}: {error}", retry=True)])


_FAULT_OF_THE_WORKER = (SchemaMismatchError, psycopg.ProgrammingError)
"""Missing functions or rights: every job would fail of it, so the worker ends instead."""
