"""The heartbeat: a thread with its own connection that renews leases and reports, also while the model runs."""

import logging
from collections.abc import Callable, Mapping
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
from loracomp.worker.link import DATABASE_AWAY, Link
from loracomp.worker.logfmt import logfmt
from loracomp.worker.presence import Presence

_log = logging.getLogger(__name__)


T = TypeVar("T")

GLANCE_S = 0.1
"""Seconds between checks for other work while the thread waits for notifications."""
LISTEN_AGAIN_S = 5.0
CANCELLED = "cancelled"
"""Payload of the notification that a running job was cancelled. Renewing at once shows whether the job is ours."""
RENEW_AGAIN_S = 1.0
"""Minimum number of seconds between two renewals that notifications cause."""


class Heartbeat:
    """Renews leases three times per lease, reports just as often (at least every 10 s), and listens for notifications
    meanwhile.

    An error does not end the thread, because without it every lease would expire.
    """

    def __init__(
        self, link: Link, leases: Leases, presence: Presence, *, lease_s: float, notified: Mapping[str, Event]
    ) -> None:
        """`notified`: for each channel, the event to set when a notification arrives. If it is empty, the thread does
        not listen."""
        self._link = link
        self._leases = leases
        self._presence = presence
        self._lease_s = lease_s
        self._notified = notified
        self._listening: Connection | None = None
        self._renew_at = self._renewed_at = self._report_at = self._listen_at = monotonic()
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
        """Report soon instead of at the next regular time, because the worker's status has changed."""
        self._soon.set()

    def run(self, operation: Callable[[Connection], T], within_s: float) -> T:
        """Run `operation` in the heartbeat's thread, on its connection; returns its result.

        Raises what it raises, or TimeoutError after `within_s` seconds.
        """
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
        """Run the operations handed over by `run`, then renew leases and report, if these are due."""
        report = self._soon.is_set() or monotonic() >= self._report_at
        self._soon.clear()
        self._answer_asked()
        if monotonic() >= self._renew_at:
            error = self._try(self._leases.renew) if self._leases.held else None
            self._renewed_at = monotonic()
            self._renew_at = self._renewed_at + self._lease_s / (15 if error else 3)
            if isinstance(error, DATABASE_AWAY):
                # Skip the report: another failing attempt to connect would delay the next renewal.
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
        """Run an operation; if it fails, close the connection, so that a new one is opened, and return the error."""
        try:
            operation(self._link.open())
        except Exception as error:
            _log.warning(logfmt("heartbeat_missed", error=error))
            self._presence.missed(error)
            self._link.close()
            self._listen_at = monotonic() + LISTEN_AGAIN_S
            return error
        return None

    def _wait(self) -> None:
        """Wait until a renewal or report is due, or until another thread hands over an operation."""
        seconds = max(0.0, min(self._renew_at, self._report_at) - monotonic())
        if not self._notified:
            self._soon.wait(seconds)
            return
        try:
            self._listen(min(seconds, GLANCE_S))
        except (psycopg.Error, LoracompError) as error:
            _log.info(logfmt("hint_lost", error=error))
            self._link.close()
            self._listen_at = monotonic() + LISTEN_AGAIN_S

    def _listen(self, seconds: float) -> None:
        if monotonic() < self._listen_at:
            self._soon.wait(seconds)
            return
        connection = self._link.open()
        if connection is not self._listening:
            connection.execute(QUERIES["listen"])
            self._listening = connection
            # Notifications that were sent before LISTEN were missed, so look for jobs now.
            for event in self._notified.values():
                event.set()
        for notification in connection.notifies(timeout=seconds):
            if notification.payload == CANCELLED:
                self._renew_at = min(self._renew_at, max(monotonic(), self._renewed_at + RENEW_AGAIN_S))
            self._notified[notification.channel].set()
