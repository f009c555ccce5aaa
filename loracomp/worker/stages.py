"""The interface of the engine that a worker uses, and how a worker finds out which job of a batch caused an error."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import psycopg

from loracomp.database.connections import Connection
from loracomp.engine.inflight import InFlight
from loracomp.errors import DeviceFailedError, JobError, SchemaMismatchError
from loracomp.worker.leases import Leases
from loracomp.worker.logfmt import logfmt, message_of, without_quotes

_log = logging.getLogger(__name__)

FAULT_OF_THE_WORKER = (SchemaMismatchError, DeviceFailedError, psycopg.ProgrammingError)
"""Errors such as missing SQL functions or privileges: every job would fail, so the worker ends instead."""


class EngineInterface(Protocol):
    """The part of `loracomp.engine.engine.Engine` that a worker uses.

    `prepare` and `embed` each run in another thread than the other methods. If `prepare` raises, it is called again for
    each job alone; if `step` raises, each job that `clear` returns is added alone.
    """

    def __bool__(self) -> bool:
        """Whether any job is left for `step`."""

    def prepare(self, connection: Connection, flights: Sequence[InFlight]) -> None:
        """Prepare jobs for `add`. The connection, in autocommit mode, may be used only during the call."""

    def embed(self, connection: Connection) -> int:
        """Embed some of the train examples without an embedding; returns how many."""

    def add(self, flight: InFlight) -> None:
        """Take a prepared job."""

    def step(self) -> Sequence[InFlight]:
        """Run a step of the model; returns the jobs that ended.

        It must call `wanted` for each job in the step: this is cheap, and the calls show that the model does not hang.
        If it returns false, the job needs no real answer, because the answer will be dropped.
        """

    def clear(self) -> Sequence[InFlight]:
        """Return the unfinished jobs, and forget them."""

    def check_device(self) -> None:
        """Raise DeviceFailedError if the device will compute nothing until the process is started again.

        It is called after an error, from both threads.
        """


def isolate_failures(stage: Callable[[Sequence[InFlight]], object], flights: Sequence[InFlight]) -> None:
    """Run a stage over jobs. If it raises an error, it runs again for each job alone, so that only the job that caused
    it fails.

    Errors that would hit every job, such as a missing SQL function, are raised.
    """
    if not flights:
        return
    try:
        stage(flights)
        return
    except FAULT_OF_THE_WORKER:
        raise
    except Exception as error:
        blame(flights, error)
    # Outside the except block, so that the traceback no longer keeps the failed run's objects in memory.
    if len(flights) > 1:
        for flight in flights:
            isolate_failures(stage, [flight])


def check_device(engine: EngineInterface, leases: Leases, flights: Sequence[InFlight]) -> None:
    """After an error of jobs that ran together: raise DeviceFailedError if every other job would fail as well.

    The jobs are then not given back, because one of them may have broken the device: their leases expire, and from then
    on each runs alone.
    """
    try:
        engine.check_device()
    except DeviceFailedError:
        leases.forsake(flight.job for flight in flights)
        raise


def blame(flights: Sequence[InFlight], error: Exception) -> None:
    """Handle an error of jobs that ran together. If a job ran alone, it fails."""
    named = f"{type(error).__name__}: {message_of(error)}"
    if len(flights) > 1:
        _log.warning(logfmt("batch_raised", jobs=job_ids(flights), error=named))
        return
    for flight in flights:
        if not isinstance(error, JobError):
            _log.error(logfmt("job_raised", job=flight.job.id), exc_info=without_quotes(error))
            error = JobError(named, code="internal_error", retry=True)
        flight.fail(error)


def job_ids(flights: Iterable[InFlight]) -> list[int]:
    """The jobs' ids, in the same order."""
    return [flight.job.id for flight in flights]
