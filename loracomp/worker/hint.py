"""The hint that there are jobs: a thread that listens on a connection of its own. Polling finds them without it."""

import logging
from threading import Event, Thread
from types import TracebackType

from loracomp.database.connections import connect
from loracomp.database.queries import QUERIES
from loracomp.worker.link import DATABASE_AWAY
from loracomp.worker.logfmt import logfmt

_log = logging.getLogger(__name__)


class Hint:
    """Sets `wake` with each notification; listens again later where it can't."""

    def __init__(self, url: str, wake: Event, answer_s: float) -> None:
        """`answer_s` is a statement's time to answer."""
        self._url = url
        self._answer_s = answer_s
        self._wake = wake
        self._stop = Event()
        self._thread = Thread(target=self._run, name="hint", daemon=True)

    def __enter__(self) -> "Hint":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except DATABASE_AWAY as error:
                _log.info(logfmt("hint_lost", error=error))
                self._stop.wait(5)

    def _listen(self) -> None:
        with connect(self._url, application_name="loracomp hint", vectors=False, answer_s=self._answer_s) as connection:
            connection.execute(QUERIES["listen"])
            while not self._stop.is_set():
                # The time to wait is how long stopping may take.
                for _ in connection.notifies(timeout=0.5):
                    self._wake.set()
