"""The stages that a batch passes, and whose fault it is where one raises."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import psycopg

from loracomp.database.connections import Connection
from loracomp.errors import JobError, SchemaMismatchError
from loracomp.records import Failure, Job, Measurement, Prediction
from loracomp.worker.logfmt import job_ids, logfmt, told, without_quotes

Stage = Callable[[Sequence[Any]], Sequence[Any]]
"""Returns a result or a failure for each item, in their order."""

_log = logging.getLogger(__name__)


class Stages(Protocol):
    """What a worker needs of a pipeline: answers to jobs in two stages, which run in threads of their own.

    Where a stage raises, it is called again for each item alone.
    """

    def prepare(self, connection: Connection, jobs: Sequence[Job]) -> Sequence[Any | Failure]:
        """Whatever `answer` needs for each job; the connection is in autocommit mode and lent for the call."""

    def answer(
        self, prepared: Sequence[Any], wanted: Callable[[Job], bool]
    ) -> Sequence[Prediction | Measurement | Failure]:
        """Each job's prediction or measurement.

        `wanted` is cheap and asked between the model's steps, which shows that it goes on. What is not wanted any more
        need not be answered in earnest: whatever comes is dropped.
        """


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs claimed together, and what each has come to so far: prepared, then a result, or a failure."""

    jobs: Sequence[Job]
    results: Mapping[Job, Any | Failure]
    """Without the jobs whose leases are lost: those are held still, until the batch is let go."""
    timings: Mapping[str, float]
    """Milliseconds of what the worker did besides the stages, up to `since`."""
    since: float = field(default_factory=perf_counter)

    @property
    def steps(self) -> Mapping[str, float]:
        """Milliseconds of the pipeline's steps, which all results of a batch share."""
        results = (each for each in self.results.values() if isinstance(each, Prediction | Measurement))
        return next((each.timings for each in results), {})


def through(
    stage: Stage, items: Mapping[Job, Any | Failure], kept: Callable[[Sequence[Job]], Iterable[Job]]
) -> dict[Job, Any | Failure]:
    """What a stage makes of each item that has not failed and whose job is `kept`; where it raises, of each alone.

    So the culprit alone fails. Raises what is the worker's own fault.
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
    # Outside the handler, where the error's traceback no longer holds what it was working on.
    alone = (through(stage, {job: item}, kept) for job, item in going_on.items())
    return failed | {job: result for each in alone for job, result in each.items()}


def milliseconds_since(start: float) -> float:
    """By perf_counter, to the microsecond."""
    return round((perf_counter() - start) * 1000, 3)


def _failure(job: Job, error: Exception) -> Failure:
    if isinstance(error, JobError):
        return Failure(job.id, error.code, str(error), error.retry)
    _log.error(logfmt("job_raised", job=job.id), exc_info=without_quotes(error))
    return Failure(job.id, "internal_error", _named(error), retry=True)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {told(error)}"


_FAULT_OF_THE_WORKER = (SchemaMismatchError, psycopg.ProgrammingError)
"""Missing functions or rights: every job would fail of it, so the worker ends instead."""
