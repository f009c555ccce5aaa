"""A worker's connections to the database, which are opened again after they break."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from threading import Event
from typing import TypeVar

import psycopg
import psycopg.errors as pg
from psycopg.pq import TransactionStatus

from loracomp import metrics
from loracomp.database.connections import Connection, connect
from loracomp.database.queries import QUERIES
from loracomp.errors import DatabaseUnavailableError
from loracomp.worker.logfmt import logfmt

T = TypeVar("T")

DATABASE_AWAY = (
    psycopg.OperationalError, psycopg.InterfaceError, pg.ReadOnlySqlTransaction, DatabaseUnavailableError
)  # fmt: skip
"""Errors of a database that is restarting, has too many connections or can't be reached. A later try may succeed.

ReadOnlySqlTransaction: the server has become a standby, and a new connection may reach the primary.
"""
NOT_THE_JOBS_FAULT = (pg.DiskFull, pg.ReadOnlySqlTransaction, pg.LockNotAvailable, pg.QueryCanceled)
"""Errors of DATABASE_AWAY with which the database answers, although other jobs would not succeed either.

LockNotAvailable and QueryCanceled: the worker's role has a lock_timeout or a statement_timeout, and a table is locked,
for example because an index is built, or the database is slow.
"""

_log = logging.getLogger(__name__)


class Link:
    """One connection, opened when it is needed and opened again after it breaks. Not thread-safe."""

    def __init__(
        self, url: str, application_name: str, stopping: Event, statement_timeout_s: float, *, vectors: bool = True
    ) -> None:
        """The event `stopping` ends a wait between two tries.

        `statement_timeout_s`: seconds after which a statement without an answer is cancelled. `vectors`: whether the
        connection must know pgvector's types.
        """
        self._url = url
        self._statement_timeout_s = statement_timeout_s
        # Postgres truncates longer names, with a notice each time.
        self._application_name = application_name[:63]
        self._stopping = stopping
        self._vectors = vectors
        self._connection: Connection | None = None
        self._calling = False

    def open(self) -> Connection:
        """The connection; it is opened if there is none or it is broken. Raises what `connect` raises."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(
                self._url,
                application_name=self._application_name,
                vectors=self._vectors,
                statement_timeout_s=self._statement_timeout_s,
            )
        return self._connection

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def call(self, operation: Callable[[Connection], T], give_up: Callable[[Exception], bool] = lambda _: False) -> T:
        """Run `operation` on the connection and return its result; repeat it with back-off while the database is away.

        So `operation` may run several times. If `give_up(error)` is true, the error is raised instead.
        """
        delay = 0.1
        self._calling = True
        try:
            while True:
                try:
                    return operation(self.open())
                except DATABASE_AWAY as error:
                    if give_up(error):
                        raise
                    metrics.DATABASE_AWAY.inc()
                    _log.warning(logfmt("database_away", error=error, again_in_s=delay))
                self.close()
                self._pause(delay * random.uniform(0.5, 1.5))  # noqa: S311
                delay = min(2 * delay, 10)
        finally:
            self._calling = False

    @property
    def waits(self) -> bool:
        """Whether a call is waiting for the database at this moment, for an answer or for a new connection.

        Other threads may ask this. A call that computes between two statements does not wait.
        """
        connection = self._connection
        return self._calling and (
            connection is None or connection.closed or connection.info.transaction_status == TransactionStatus.ACTIVE
        )

    def is_alive(self) -> bool:
        """Whether there is an open connection that still works."""
        return self._connection is not None and self._answers(self._connection)

    def database_answers(self) -> bool:
        """Whether the database answers, on the connection or on a new one if that is broken."""
        try:
            return self._answers(self.open())
        except DATABASE_AWAY:
            return False

    def _answers(self, connection: Connection) -> bool:
        try:
            return bool(connection.execute(QUERIES["ping"]))
        except DATABASE_AWAY:
            return False

    def _pause(self, seconds: float) -> None:
        if self._stopping.is_set():
            time.sleep(seconds)
        else:
            self._stopping.wait(seconds)


def may_be_the_jobs_fault(error: Exception, jobs: Sequence[object]) -> bool:
    """Whether an error with which the database answers may come from one of these jobs, so that each is tried alone.

    A statement that was cancelled because it took too long may be fast enough with fewer jobs.
    """
    return not isinstance(error, NOT_THE_JOBS_FAULT) or (isinstance(error, pg.QueryCanceled) and len(jobs) > 1)
