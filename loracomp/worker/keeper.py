"""The keeper: a thread with its own connection, which does the work that no job should wait for.

One worker at a time is elected to do this for all workers (SQL function `keep_house`). Each step is one SQL function in
its own transaction; it ends soon by itself and returns how much it handled. If a step fails, the other steps go on, and
it is tried again later.
"""

import logging
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread
from time import monotonic
from types import TracebackType

import psycopg

from loracomp.database.connections import Connection, rows_within
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError
from loracomp.worker.link import Link
from loracomp.worker.logfmt import logfmt, message_of
from loracomp.worker.pace import Pace
from loracomp.worker.steps import LOCK_S, STEP_S, Step

ELECTED_S = 5.0
"""Seconds for which a worker is elected."""
ELECT_AGAIN_S = 1.5
"""Seconds after which the elected worker renews its election, and the others check whether it has ended."""
NOTE_EVERY_S = 10.0
"""Seconds between two records of what a step did. They are rare, because each record leaves a dead tuple."""

_log = logging.getLogger(__name__)


def call(connection: Connection, step: str) -> int:
    """Call a step's SQL function, in a transaction of its own; returns how much it handled."""
    (row,) = rows_within(connection, STEP_S, QUERIES[step], lock_s=LOCK_S)
    return int(row["handled"])


class Keeper:
    """Calls the steps while it is elected, in its own thread, within a `with` block."""

    def __init__(
        self, link: Link, *, worker: str, poll_s: float, lease_s: float, changed: Callable[[], object]
    ) -> None:
        """`poll_s`: seconds between two calls of a step that finds nothing to do.

        `lease_s`: length of jobs' leases, and seconds for which workers may renew them after an outage.

        `changed` is called after a step has handled something, because jobs may be due now.
        """
        self._link = link
        self._worker = worker
        self._changed = changed
        self._given = {
            "worker": worker,
            "lease": timedelta(seconds=ELECTED_S),
            "grace": timedelta(seconds=lease_s),
        }
        self._steps = [
            Step("rescue_jobs", poll_s),
            Step("wake_jobs", poll_s, is_woken=True),
            Step("ask_rows", poll_s, is_woken=True),
            Step("take_answers", poll_s, is_woken=True),
            Step("measure_corrections", poll_s),
            Step("make_partitions", 60.0),
        ]
        self._elected = False
        self._elect_at = monotonic()
        self._found = False
        self._pace = Pace()
        self.notified = Event()
        """Set it when the keeper may have something to do."""
        self._stop = Event()
        self._thread = Thread(target=self._run, name="keeper", daemon=True)

    def __enter__(self) -> "Keeper":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Begin no more steps."""
        self._stop.set()
        self.notified.set()

    @property
    def is_idle(self) -> bool:
        """Whether another worker keeps house, or the last call of each step found nothing to do or failed."""
        return not self._elected or all(step.handled == 0 for step in self._steps)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._round()
            except Exception as error:  # the database is away, or another error that may not happen in a later round
                _log.warning(logfmt("not_kept", error=error))
                self._link.close()
                self._elected = False
                self._stop.wait(ELECT_AGAIN_S)
            self._wait()
        if self._elected:
            self._leave()
        self._link.close()

    def _leave(self) -> None:
        try:
            self._link.open().execute(QUERIES["leave_house"], {"worker": self._worker})
        except (psycopg.Error, LoracompError) as error:
            _log.info(logfmt("house_not_left", error=error))

    def _round(self) -> None:
        """Call the steps that are due."""
        self._found = False
        if self._elect_at <= monotonic():
            self._elect()
        if self._elected:
            if self.notified.is_set():
                self.notified.clear()
                self._wake()
            for step in self._steps:
                self._take(step)

    def _elect(self) -> None:
        (row,) = rows_within(self._link.open(), STEP_S, QUERIES["keep_house"], self._given, lock_s=LOCK_S)
        elected = bool(row["elected"])
        if elected and not self._elected:
            _log.info(logfmt("keeps_house"))
            self.notified.set()  # notifications that arrived before the election were for another worker
        self._elected = elected
        self._elect_at = monotonic() + ELECT_AGAIN_S

    def _wake(self) -> None:
        for step in self._steps:
            if step.is_woken and not step.failures:
                step.due_at = monotonic()

    def _take(self, step: Step) -> None:
        """Call a step if it is due."""
        began = monotonic()
        if self._stop.is_set() or step.due_at > began:
            return
        error: Exception | None = None
        try:
            step.succeed(call(self._link.open(), step.name), began)
        except Exception as failure:
            if not self._link.is_alive():
                raise  # not the fault of a step
            error = failure
            _log.warning(logfmt("step_failed", step=step.name, error=error))
            step.fail()
        self._note(step, monotonic() - began, error)
        if step.handled:
            self.notified.set()  # wake_jobs must give rescued jobs a place
            self._found = True
            self._changed()

    def _note(self, step: Step, took_s: float, error: Exception | None) -> None:
        """Record what a step did: every few seconds, and each time that it failed."""
        if not error and monotonic() < step.noted_at + NOTE_EVERY_S:
            return
        step.noted_at = 0.0 if error else monotonic()
        given = {
            "step": step.name,
            "worker": self._worker,
            "handled": step.handled,
            "took_s": took_s,
            "error": error and message_of(error),
        }
        rows_within(self._link.open(), STEP_S, QUERIES["note_step"], given, lock_s=LOCK_S)

    def _wait(self) -> None:
        """Wait until a step is due or a notification arrives; if rounds keep finding nothing, wait at least for a
        moment."""
        if not self._found:
            self._stop.wait(self._pace.pause_s())
        due_at = [step.due_at for step in self._steps] if self._elected else []
        seconds = min([self._elect_at, *due_at]) - monotonic()
        if seconds <= 0:
            return
        if self._elected:
            self.notified.wait(seconds)
        else:
            self._stop.wait(seconds)
