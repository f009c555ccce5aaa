"""Hands claimed jobs from the thread that claims to the thread of the model, which takes them between its steps."""

from collections.abc import Sequence
from threading import Condition, Event
from time import monotonic

from loracomp.engine.inflight import InFlight

WAITING = 0.25
"""How long the model waits for expected jobs, as a share of the duration of its last step.

On two cores, routing a few jobs takes 8 ms, and the next token of a text takes 70 ms.
"""


class Handover:
    """A place for the jobs of one claim, which one thread offers and the model's thread takes."""

    def __init__(self, stopping: Event) -> None:
        self._stopping = stopping
        self._changed = Condition()
        self._offered: Sequence[InFlight] = ()
        self._expected = False
        self._began = monotonic()
        """When the model's current step began."""
        self._steps = 0
        self.is_free = True
        """Whether the model is idle."""

    def busy(self) -> None:
        """Note that the model has begun to work."""
        self._began = monotonic()
        self.is_free = False

    def free(self) -> None:
        """Note that the model has become idle."""
        with self._changed:
            self.is_free = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Wake the threads that wait here, because the worker is stopping."""
        with self._changed:
            self._changed.notify_all()

    def expect(self) -> None:
        """Note that jobs are claimed and will be offered soon, unless the model is idle and will take them itself."""
        self._expected = not self.is_free

    def take(self) -> Sequence[InFlight]:
        """Return the offered jobs, if there are any; the model calls this after each step.

        If jobs are expected soon, wait for them for a part of a step, because otherwise they would wait for a whole
        step.
        """
        with self._changed:
            if self._expected:
                self._changed.wait_for(
                    lambda: self._offered or self._stopping.is_set(),
                    timeout=WAITING * (monotonic() - self._began),
                )
                self._expected = False
            taken, self._offered = self._offered, ()
            self._began = monotonic()
            self._steps += 1
            self._changed.notify_all()
            return taken

    def offer(self, flights: Sequence[InFlight], within_s: float) -> bool:
        """Offer jobs. Returns whether the model takes them in time, or is idle and will take them; if not, they are
        withdrawn."""
        with self._changed:
            self._offered = flights
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not self._offered or self.is_free or self._stopping.is_set(), timeout=within_s
            )
            if not self._offered or (self.is_free and not self._stopping.is_set()):
                return True
            self._offered = ()
            return False

    def wait_for_a_step(self) -> None:
        """Wait until the model has ended a step or is idle, or the worker stops."""
        with self._changed:
            steps = self._steps
            self._changed.wait_for(lambda: self._steps > steps or self.is_free or self._stopping.is_set())
