"""The keeper: a thread with its own connection, which does the work that no job should wait for.

One worker at a time is elected to do this for all workers (SQL function `keep_house`). Each step is one SQL function in
its own transaction; it ends soon by itself and returns how much it handled. If a step fails, the other steps go on, and
it is tried again later. Embedding is a step of every worker, because each embeds other examples.
"""

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from threading import Event, Thread
from time import monotonic
from types import TracebackType

import psycopg

from loracomp.database.connections import Connection, row_of
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError
from loracomp.worker.link import Link
from loracomp.worker.logfmt import logfmt, message_of
from loracomp.worker.steps import Step, call, within

ELECTED_S = 5.0
"""Seconds for which a worker is elected."""
ELECT_AGAIN_S = 1.5
"""Seconds after which the elected worker renews its election, and the others check whether it has ended."""
STEP_S = 5.0
"""Seconds after which a step is cancelled. It ends by itself within a fifth of a second, unless something is wrong."""
PAUSE_S = 0.05
"""Seconds between rounds that find nothing to do, however many notifications come: any login can send them."""
ROUNDS_AT_ONCE = 10
"""How many of these rounds may follow one another without a pause. A row and its answer cause about three."""
NOTE_EVERY_S = 10.0
"""Seconds between two records of what a step did. They are rare, because each record leaves a dead tuple."""
FAILED_AGAIN_S, DOUBLED_AT_MOST = 1.0, 6
"""Seconds after which a failed step is tried again. They double with each further failure, up to this many times."""
REST_AT_MOST_S = 60.0
"""Maximum number of seconds after which a step that found nothing to do is called again, however long it took."""
EMBED_BUSY_S = 10.0
"""Seconds after which a worker that holds jobs looks for examples to embed."""

_log = logging.getLogger(__name__)


class Keeper:
    """Calls the steps while it is elected, in its own thread, within a `with` block."""

    def __init__(
        self,
        link: Link,
        *,
        worker: str,
        poll_s: float,
        embed: Callable[[Connection], int],
        busy: Callable[[], bool],
        changed: Callable[[], object],
    ) -> None:
        """`poll_s`: seconds between two calls of a step that finds nothing to do.

        `embed` embeds some examples, and `busy` says whether the worker holds jobs. `changed` is called after a step
        has handled something, because jobs may be due now.
        """
        self._link = link
        self._worker = worker
        self._embed = embed
        self._busy = busy
        self._changed = changed
        self._steps = [
            Step("rescue_jobs", poll_s),
            Step("wake_jobs", poll_s, is_woken=True),
            Step("ask_rows", poll_s, is_woken=True),
            Step("take_answers", poll_s, is_woken=True),
            Step("measure_corrections", poll_s),
            Step("maintain", 60.0),
        ]
        self._embedding = Step("embed", poll_s, rests=99.0)
        """Looking for examples to embed reads all examples that have a text."""
        self._elected = False
        self._elect_at = monotonic()
        self._found = False
        self._paused_until = 0.0
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
        """Whether the last call of each step found nothing to do, or failed."""
        steps = [self._embedding, *(self._steps if self._elected else ())]
        return all(step.handled == 0 for step in steps)

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
                self._take(step, partial(call, step.name))
        self._take(self._embedding, self._embed)

    def _elect(self) -> None:
        given = {"worker": self._worker, "lease": timedelta(seconds=ELECTED_S)}
        connection = self._link.open()
        with within(connection, STEP_S):
            elected = bool(row_of(connection, QUERIES["keep_house"], given)["elected"])
        if elected and not self._elected:
            _log.info(logfmt("keeps_house"))
            self.notified.set()  # notifications that arrived before the election were for another worker
        self._elected = elected
        self._elect_at = monotonic() + ELECT_AGAIN_S

    def _wake(self) -> None:
        for step in self._steps:
            if step.is_woken and not step.failures:
                step.due_at = monotonic()

    def _take(self, step: Step, call: Callable[[Connection], int]) -> None:
        """Call a step if it is due. A step that has handled something is due again at once."""
        began = monotonic()
        if self._stop.is_set() or step.due_at > began:
            return
        error: Exception | None = None
        try:
            connection = self._link.open()
            with within(connection, STEP_S):
                step.handled = call(connection)
            step.failures = 0
            step.due_at = began if step.handled else monotonic() + self._pause_s(step, monotonic() - began)
        except Exception as failure:
            if not self._link.is_alive():
                raise  # not the fault of a step
            error = failure
            _log.warning(logfmt("step_failed", step=step.name, error=error))
            step.handled = 0
            step.due_at = monotonic() + FAILED_AGAIN_S * 2 ** min(step.failures, DOUBLED_AT_MOST)
            step.failures += 1
        self._note(step, monotonic() - began, error)
        if step.handled:
            self.notified.set()  # wake_jobs must give rescued jobs a place
            self._found = True
            self._changed()

    def _pause_s(self, step: Step, took_s: float) -> float:
        """Seconds until a step that found nothing is due again."""
        every_s = EMBED_BUSY_S if step is self._embedding and self._busy() else step.every_s
        return max(every_s, min(step.rests * took_s, REST_AT_MOST_S))

    def _note(self, step: Step, took_s: float, error: Exception | None) -> None:
        """Record what a step did: every few seconds, and each time that it failed."""
        if step is self._embedding or not (error or monotonic() >= step.noted_at + NOTE_EVERY_S):
            return
        step.noted_at = 0.0 if error else monotonic()
        given = {
            "step": step.name,
            "worker": self._worker,
            "handled": step.handled,
            "took_s": took_s,
            "error": error and message_of(error),
        }
        connection = self._link.open()
        with within(connection, STEP_S):
            connection.execute(QUERIES["note_step"], given)

    def _wait(self) -> None:
        """Wait until a step is due or a notification arrives; if rounds keep finding nothing, wait at least for a
        moment."""
        if not self._found:
            now = monotonic()
            self._paused_until = max(self._paused_until, now - ROUNDS_AT_ONCE * PAUSE_S) + PAUSE_S
            self._stop.wait(max(0.0, self._paused_until - now))
        steps = [self._embedding, *(self._steps if self._elected else ())]
        seconds = min(self._elect_at, *(step.due_at for step in steps)) - monotonic()
        if seconds <= 0:
            return
        if self._elected:
            self.notified.wait(seconds)
        else:
            self._stop.wait(seconds)
