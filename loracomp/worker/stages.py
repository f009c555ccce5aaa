"""The stages that a batch passes through; if a stage raises, finds out which job caused it."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import psycopg

from loracomp.database.connections import Connection
from loracomp.errors import JobError, SchemaMismatchError
from loracomp.records import Failure, Job, Measurement, Prediction
from loracomp.worker.logfmt import job_ids, logfmt, told, without_quotes

Stage = Callable[[Sequence[Any]], Sequence[Any]]
"""Maps a list of items to a result or a failure for each, in the same order."""

_log = logging.getLogger(__name__)


Result: TypeAlias = Prediction | Measurement | Failure


class Stages(Protocol):
    """The part of a pipeline that a worker uses: two stages, each of which runs in its own thread.

    If a stage raises, it is called again for each item alone.
    """

    def prepare(self, connection: Connection, jobs: Sequence[Job]) -> Sequence[Any | Failure]:
        """Prepare jobs for `answer`. The connection, in autocommit mode, may be used only during the call."""

    def answer(
        self, prepared: Sequence[Any], wanted: Callable[[Job], bool], arriving: Callable[[], Sequence[Any]]
    ) -> Iterator[Sequence[Result]]:
        """Yield after each step of the model the results of the jobs that it ended; then the jobs in `arriving()` join.

        Call `wanted` between the model's steps: it is cheap, and the calls show that the model does not hang. A job for
        which it is false needs no real answer, because the answer will be dropped.
        """


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that were claimed together, with the current state of each: prepared, result or failure."""

    jobs: Sequence[Job]
    results: Mapping[Job, Any | Failure]
    """The state of each job, without jobs whose leases are lost; these are held until the whole batch is let go."""
    timings: Mapping[str, float]
    """Milliseconds of the worker's own steps so far; `since` is the time up to which they count."""
    since: float = field(default_factory=perf_counter)
    observed: set[str] = field(default_factory=set)
    """Steps of the claim that metrics have counted, shared by the groups of its jobs that end at different times."""

    @property
    def steps(self) -> Mapping[str, float]:
        """Milliseconds of the pipeline's steps, of a result for all of its batch; without the job's own share."""
        results = (each for each in self.results.values() if isinstance(each, Prediction | Measurement))
        timings = next((each.timings for each in results), {})
        return {step: spent for step, spent in timings.items() if step != "model"}


def through(
    stage: Stage, items: Mapping[Job, Any | Failure], kept: Callable[[Sequence[Job]], Iterable[Job]]
) -> dict[Job, Any | Failure]:
    """Run a stage over the items that have not failed and whose jobs are `kept`.

    If the stage raises, it runs again for each item alone, so that only the item that causes the error fails. Errors
    that would hit every job, such as a missing SQL function, are raised.
    """
    left = {job: items[job] for job in kept(list(items))}
    failed = {job: item for job, item in left.items() if isinstance(item, Failure)}
    going_on = {job: item for job, item in left.items() if job not in failed}
    if not going_on:
        return failed
    try:
        return failed | dict(zip(going_on, stage(list(going_on.values())), strict=True))
    except _FAULT_OF_THE_WORKER:
        raise
    except Exception as error:
        if len(going_on) == 1:
            return failed | {job: _failure(job, error) for job in going_on}
        _log.warning(logfmt("batch_raised", jobs=job_ids(going_on), error=_named(error)))
    # Outside the except block, so that the traceback no longer keeps the failed run's objects in memory.
    alone = (through(stage, {job: item}, kept) for job, item in going_on.items())
    return failed | {job: result for each in alone for job, result in each.items()}


def answers(
    stage: Callable[[Sequence[Any], Callable[[], Sequence[Any]]], Iterator[Sequence[Result]]],
    items: Mapping[Job, Any],
    arriving: Callable[[], Mapping[Job, Any]] = dict,
) -> Iterator[dict[Job, Result]]:
    """Yield the results of `Stages.answer` for these items and those that arrive, as soon as each is there.

    If it raises, it runs again for each item alone, so that only the item that causes the error fails. Errors that
    would hit every job are raised.
    """
    left = dict(items)

    def joining() -> list[Any]:
        new = arriving()
        left.update(new)
        return list(new.values())

    try:
        for results in stage(list(items.values()), joining):
            jobs = {job.id: job for job in left}
            found = {jobs[result.job_id]: result for result in results}
            for job in found:
                left.pop(job)
            if found:
                yield found
        if left:
            raise LookupError("the model gave no answer")
    except _FAULT_OF_THE_WORKER:
        raise
    except Exception as error:
        if len(left) <= 1:
            yield {job: _failure(job, error) for job in left}
            return
        _log.warning(logfmt("batch_raised", jobs=job_ids(left), error=_named(error)))
    # Outside the except block, as in `through`.
    for job, item in left.items():
        yield from answers(stage, {job: item})


def milliseconds_since(start: float) -> float:
    """Milliseconds since `start` (a value of perf_counter), rounded to microseconds."""
    return round((perf_counter() - start) * 1000, 3)


def _failure(job: Job, error: Exception) -> Failure:
    if isinstance(error, JobError):
        return Failure(job.id, error.code, str(error), error.retry)
    _log.error(logfmt("job_raised", job=job.id), exc_info=without_quotes(error))
    return Failure(job.id, "internal_error", _named(error), retry=True)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {told(error)}"


_FAULT_OF_THE_WORKER = (SchemaMismatchError, psycopg.ProgrammingError)
"""Errors such as missing SQL functions or privileges: every job would fail, so the worker ends instead."""
