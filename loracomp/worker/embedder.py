"""Embeds train examples that have no embedding yet: a thread with a connection of its own, in each worker.

It may wait long for the model's turn on the processor, so it is no step of the keeper, which must not wait.
"""

import logging
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic
from types import TracebackType

from loracomp.database.connections import Connection
from loracomp.worker.link import Link
from loracomp.worker.logfmt import logfmt
from loracomp.worker.steps import Step

BUSY_S = 2.0
"""Seconds after which a worker that holds jobs looks for examples to embed."""

_log = logging.getLogger(__name__)


class Embedder:
    """Embeds some examples at a time, as long as there are any, within a `with` block."""

    def __init__(
        self, link: Link, *, poll_s: float, embed: Callable[[Connection], int], busy: Callable[[], bool]
    ) -> None:
        """`embed` embeds some examples and returns how many; `busy` says whether the worker holds jobs."""
        self._link = link
        self._poll_s = poll_s
        self._embed = embed
        self._busy = busy
        self._step = Step("embed", poll_s, rests=99.0)  # looking for examples reads all that have a text
        self._stop = Event()
        self._thread = Thread(target=self._run, name="embed", daemon=True)

    def __enter__(self) -> "Embedder":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Begin no more."""
        self._stop.set()

    @property
    def is_idle(self) -> bool:
        """Whether the last look found nothing to embed, or failed."""
        return self._step.handled == 0

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._stop.wait(max(0.0, self._step.due_at - monotonic()))
        self._link.close()

    def _look(self) -> None:
        self._step.every_s = BUSY_S if self._busy() else self._poll_s
        began = monotonic()
        try:
            self._step.succeed(self._embed(self._link.open()), began)
        except Exception as error:
            _log.warning(logfmt("step_failed", step=self._step.name, error=error))
            self._link.close()
            self._step.fail()
