"""A worker's entry in the registry of workers: a thread that reports every few seconds, on a connection of its own."""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from threading import Event, Thread
from time import monotonic
from types import TracebackType

import psycopg

from loracomp import __version__, metrics
from loracomp.database.connections import Connection, connect
from loracomp.database.queries import QUERIES
from loracomp.database.schema import head
from loracomp.errors import LoracompError
from loracomp.worker.endpoint import DatabaseSample
from loracomp.worker.logfmt import logfmt, told

_log = logging.getLogger(__name__)


class Presence:
    """Reports what a worker does three times a lease, every 10 s at least, and that it stops.

    A report or sample that fails is logged and costs the worker nothing.
    """

    def __init__(
        self,
        url: str,
        identity: Mapping[str, object],
        activity: Callable[[], Mapping[str, object]],
        *,
        lease_s: float,
        answer_s: float,
        sample: DatabaseSample | None = None,
    ) -> None:
        """`identity` is the worker's name, base_model and device; `activity` gives its status and looked_s.

        `sample` gets the database's numbers.
        """
        self._url = url
        self._identity = {
            **identity,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "code_version": __version__,
            "silent_after_s": lease_s,
        }
        self._activity = activity
        self._pause = min(lease_s / 3, 10)
        self._answer_s = answer_s
        self._release = head()
        self._sample = sample
        self._sample_after = self._since = monotonic()
        self._problems: Mapping[str, str] = {"database": "the worker has not reported yet"}
        self._stop = Event()
        self._soon = Event()
        self._thread = Thread(target=self._run, name="presence", daemon=True)
        self._connection: Connection | None = None

    def __enter__(self) -> "Presence":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._soon.set()
        self._thread.join()

    def report_soon(self) -> None:
        """What it does has changed in a way that others should know of."""
        self._soon.set()

    @property
    def problems(self) -> Mapping[str, str]:
        """What the last report found wrong with the database or its schema, in words."""
        return self._problems

    def _run(self) -> None:
        while not self._stop.is_set():
            self._report(self._activity())
            self._soon.wait(self._pause)
            self._soon.clear()
        self._report({**self._activity(), "status": "stopped"})
        self._close()

    def _report(self, activity: Mapping[str, object]) -> None:
        try:
            self._connection = self._connection or connect(
                self._url, application_name="loracomp presence", vectors=False, answer_s=self._answer_s
            )
            self._problems = self._schema_problems(self._connection)
            arguments = {**self._identity, **activity, **metrics.totals(), "running_s": monotonic() - self._since}
            self._connection.execute(QUERIES["report_worker"], arguments)
        except (psycopg.Error, LoracompError) as error:
            _log.warning(logfmt("not_reported", error=error))
            self._problems = {**self._problems, "database": told(error)}
            if self._sample:
                self._sample.clear()
                self._sample_after = monotonic()
            self._close()
        else:
            self._take_sample(self._connection)

    def _schema_problems(self, connection: Connection) -> dict[str, str]:
        row = connection.execute(QUERIES["schema_revision"]).fetchone()
        found = row and row["revision"]
        if found == self._release:
            return {}
        return {"schema": f"the database's schema is {found}, this release's is {self._release}: run the same release"}

    def _take_sample(self, connection: Connection) -> None:
        if self._sample is None or monotonic() < self._sample_after:
            return
        start = monotonic()
        try:
            self._sample.update(connection.execute(QUERIES["database_metrics"]))
        except psycopg.Error as error:
            # Jobs are answered without it.
            _log.warning(logfmt("not_sampled", error=error))
            self._sample.clear()
            self._close()
        finally:
            # A queue of a million takes a second to count: that may cost the server one per cent of its time.
            self._sample_after = monotonic() + 99 * (monotonic() - start)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
