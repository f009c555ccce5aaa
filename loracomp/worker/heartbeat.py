"""The heartbeat: a thread with a connection of its own, which goes on while the model runs."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import TypeVar

import psycopg

from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError
from loracomp.worker.leases import Leases
from loracomp.worker.link import DATABASE_AWAY, Link, at_most
from loracomp.worker.logfmt import logfmt
from loracomp.worker.presence import Presence

T = TypeVar("T")

GLANCE_S = 0.1
"""Seconds after which whoever listens looks whether it is asked for something else."""
LISTEN_AGAIN_S = 5.0

_log = logging.getLogger(__name__)


class Heartbeat:
    """Renews the leases three times a lease, reports as often and every 10 s at least, and listens for jobs between.

    An error ends none of it: without this thread every lease would run out.
    """

    def __init__(
        self, link: Link, leases: Leases, presence: Presence, *, lease_s: float, notified: Event | None
    ) -> None:
        """`notified` is set with each notification of new jobs; None: it doesn't listen."""
        self._link = link
        self._leases = leases
        self._presence = presence
        self._lease_s = lease_s
        self._notified = notified
        self._listening: Connection | None = None
        self._renew_at = self._report_at = self._listen_at = monotonic()
        self._asked: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._soon = Event()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._soon.set()
        self._thread.join()

    def report_soon(self) -> None:
        """What the worker does has changed in a way that others should know of."""
        self._soon.set()

    def run(self, operation: Callable[[Connection], T], within_s: float) -> T:
        """What `operation` returns on the heartbeat's connection. Raises what it raises, or TimeoutError."""
        result: Future[T] = Future()

        def answer() -> None:
            try:
                result.set_result(operation(self._link.open()))
            except Exception as error:
                result.set_exception(error)

        self._asked.put(answer)
        self._soon.set()
        return result.result(within_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._beat()
            self._wait()
        self._answer_asked()
        self._try(lambda connection: self._presence.report(connection, stopped=True))
        self._link.close()

    def _beat(self) -> None:
        """Do what is asked and what is due, leases before the report."""
        report = self._soon.is_set() or monotonic() >= self._report_at
        self._soon.clear()
        self._answer_asked()
        if monotonic() >= self._renew_at:
            error = self._try(self._leases.renew) if self._leases.held else None
            self._renew_at = monotonic() + self._lease_s / (15 if error else 3)
            if isinstance(error, DATABASE_AWAY):
                # To connect in vain once more would hold up the next renewal.
                self._report_at = self._renew_at
                return
        if report:
            self._try(self._presence.report)
            self._report_at = monotonic() + min(self._lease_s / 3, 10)

    def _answer_asked(self) -> None:
        with suppress(Empty):
            while True:
                self._asked.get_nowait()()

    def _try(self, operation: Callable[[Connection], object]) -> Exception | None:
        """What it failed of, if it did; then the next one gets a new connection."""
        try:
            operation(self._link.open())
        except (psycopg.Error, LoracompError) as error:
            _log.warning(logfmt("heartbeat_missed", error=error))
            self._presence.missed(error)
            self._link.close()
            self._listen_at = monotonic() + LISTEN_AGAIN_S
            return error
        return None

    def _wait(self) -> None:
        """Until something is due or asked for."""
        seconds = max(0.0, min(self._renew_at, self._report_at) - monotonic())
        if self._notified is None:
            self._soon.wait(seconds)
            return
        try:
            self._listen(self._notified, min(seconds, GLANCE_S))
        except (psycopg.Error, LoracompError) as error:
            _log.info(logfmt("hint_lost", error=error))
            self._link.close()
            self._listen_at = monotonic() + LISTEN_AGAIN_S

    def _listen(self, notified: Event, seconds: float) -> None:
        if monotonic() < self._listen_at:
            self._soon.wait(seconds)
            return
        connection = self._link.open()
        if connection is not self._listening:
            with at_most(connection, self._lease_s / 6):
                connection.execute(QUERIES["listen"])
            self._listening = connection
            # What came before could not be heard.
            notified.set()
        for _ in connection.notifies(timeout=seconds):
            notified.set()
