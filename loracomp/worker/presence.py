"""A worker's presence: what it reports to the database, and the metrics of the database that it reads."""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from time import monotonic

import psycopg

from loracomp import __version__, metrics
from loracomp.database.connections import Connection, rows_within
from loracomp.database.queries import QUERIES
from loracomp.database.revision import worker_problem
from loracomp.worker.endpoint import DatabaseSample
from loracomp.worker.logfmt import logfmt, message_of

_log = logging.getLogger(__name__)


class Presence:
    """Reports a worker's status, and reads the database's metrics. A failure is noted, and the worker goes on."""

    def __init__(
        self,
        identity: Mapping[str, object],
        activity: Callable[[], Mapping[str, object]],
        lease_s: float,
        sample: DatabaseSample | None = None,
    ) -> None:
        """`identity` has the worker's name, base_model and device; `activity` returns its status and looked_s.

        `sample` receives the metrics of the database.
        """
        self._identity = {
            **identity,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "code_version": __version__,
            "silent_after_s": lease_s,
        }
        self._activity = activity
        # A short limit, because the same thread renews leases, three times per lease.
        self._statement_s = lease_s / 6
        self._sample = sample
        self._stopped = False
        self._sample_after = self._since = monotonic()
        self._problems: Mapping[str, str] = {"database": "the worker has not reported yet"}

    @property
    def problems(self) -> Mapping[str, str]:
        """Problems with the database or its schema that the last report found: a sentence for each check."""
        return self._problems

    def report(self, connection: Connection, *, stopped: bool = False) -> None:
        """Report the status, and read the metrics if they are due.

        Each statement may take a sixth of a lease.
        """
        self._stopped |= stopped  # for later reports too, because a regular report may follow before the process ends
        doing = {**self._activity(), **({"status": "stopped"} if self._stopped else {})}
        schema = worker_problem(*rows_within(connection, self._statement_s, QUERIES["oldest_worker"]))
        running_s = monotonic() - self._since
        words = {**self._identity, **doing, **metrics.totals(), "running_s": running_s}
        rows_within(connection, self._statement_s, QUERIES["report_worker"], words)
        self._problems = {"schema": schema} if schema else {}
        # A stopping worker reads no metrics, because it may have to give its jobs back within a second.
        if doing["status"] in {"stopping", "stopped"}:
            return
        if self._sample and not connection.closed and monotonic() >= self._sample_after:
            self._take(self._sample, connection)

    def missed(self, error: Exception) -> None:
        """Store that the last report failed: the database can't be reached, or refused it."""
        if self._sample:  # first, so that whoever sees the problem sees no old numbers
            self._sample.clear()
            self._sample_after = monotonic()
        self._problems = {**self._problems, "database": message_of(error)}

    def _take(self, sample: DatabaseSample, connection: Connection) -> None:
        start = monotonic()
        try:
            sample.update(rows_within(connection, self._statement_s, QUERIES["database_metrics"]))
        except psycopg.Error as error:
            # Only log it, because jobs can be answered without metrics.
            _log.warning(logfmt("not_sampled", error=error))
            sample.clear()
            connection.close()
        finally:
            # Counting a million jobs takes a second, so wait 99 times as long: at most 1 % of the server's time.
            self._sample_after = monotonic() + 99 * (monotonic() - start)
