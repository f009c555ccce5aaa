"""How a claimed batch gets from the thread that claims to the model, which takes it between two of its steps."""

from threading import Condition, Event

from loracomp.worker.stages import Batch


class Handover:
    """Room for one batch."""

    def __init__(self, stopping: Event) -> None:
        self._stopping = stopping
        self._changed = Condition()
        self._offered: Batch | None = None
        self._steps = 0
        self.is_free = True
        """Whether the model has nothing to do."""

    def busy(self) -> None:
        """The model begins."""
        self.is_free = False

    def free(self) -> None:
        """The model has nothing to do any more."""
        with self._changed:
            self.is_free = True
            self._changed.notify_all()

    def stop(self) -> None:
        """The worker is stopping: what is offered and not taken goes back."""
        with self._changed:
            self._changed.notify_all()

    def take(self) -> Batch | None:
        """What is offered; for the model, after a step."""
        with self._changed:
            batch, self._offered = self._offered, None
            self._steps += 1
            self._changed.notify_all()
            return batch

    def offer(self, batch: Batch, within_s: float) -> bool:
        """Whether the model takes a batch in time, or is free to take it now. It is withdrawn where not."""
        with self._changed:
            self._offered = batch
            self._changed.wait_for(
                lambda: self._offered is None or self.is_free or self._stopping.is_set(), timeout=within_s
            )
            if self._offered is None or (self.is_free and not self._stopping.is_set()):
                return True
            self._offered = None
            return False

    def wait_for_a_step(self) -> None:
        """Until the model has ended one, or the worker stops."""
        with self._changed:
            steps = self._steps
            self._changed.wait_for(lambda: self._steps > steps or self.is_free or self._stopping.is_set())
