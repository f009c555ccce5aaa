"""The model's loop: lets the engine answer jobs, step by step, and hands ended jobs to the recorder."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from loracomp.engine.inflight import InFlight
from loracomp.worker.claimer import Claimer
from loracomp.worker.handover import Handover
from loracomp.worker.leases import Leases
from loracomp.worker.recorder import Recorder
from loracomp.worker.stages import FAULT_OF_THE_WORKER, EngineInterface, blame, check_device


class ModelLoop:
    """Runs the engine in the calling thread, while the claimer brings more jobs from another thread."""

    def __init__(
        self, engine: EngineInterface, leases: Leases, handover: Handover, claimer: Claimer, recorder: Recorder
    ) -> None:
        self._engine = engine
        self._leases = leases
        self._handover = handover
        self._claimer = claimer
        self._recorder = recorder
        self._one_by_one: deque[InFlight] = deque()
        """Jobs of a step that raised an error, which the engine gets again one at a time."""
        self.is_in_a_step = False
        """Whether the model is computing."""

    def run(self) -> None:
        """Answer jobs until the claimer has no more, because the worker stops; returns when all are recorded."""
        # While the model is idle, this thread itself claims and prepares: if two threads computed with torch, the
        # helper threads of both would compete for the same cores.
        with ThreadPoolExecutor(1, thread_name_prefix="claim") as thread:
            while flights := self._handover.take() or self._claimer.next():
                self._handover.busy()
                claiming = thread.submit(self._claimer.claim_meanwhile)
                try:
                    self._answer(flights)
                finally:
                    self._handover.free()
                    self._claimer.wake.set()
                claiming.result()
            self._recorder.check(finished=True)

    def _answer(self, flights: Sequence[InFlight]) -> None:
        """Let the model answer these jobs and jobs that arrive meanwhile. Each is recorded when it ends."""
        self._join(flights)
        while self._engine or self._one_by_one:
            if not self._engine:
                self._engine.add(self._one_by_one.popleft())
            self._recorder.add(self._step())
            if not self._one_by_one:
                self._join(self._handover.take())

    def _join(self, flights: Sequence[InFlight]) -> None:
        """Add prepared jobs to the engine. Jobs that have failed or lost their lease are recorded instead."""
        going_on = [flight for flight in flights if flight.result is None and self._leases.still_leased(flight.job)]
        for flight in going_on:
            self._engine.add(flight)
        self._recorder.add([flight for flight in flights if flight not in going_on])

    def _step(self) -> Sequence[InFlight]:
        """Run a step of the engine. If it raises an error, each of its jobs is tried again by itself, so that only the
        job that caused it fails."""
        self._leases.go_on()
        self.is_in_a_step = True
        try:
            return self._engine.step()
        except FAULT_OF_THE_WORKER:
            raise
        except Exception as error:
            left = self._engine.clear()
            check_device(self._engine, self._leases, left)
            blame(left, error)
        finally:
            self.is_in_a_step = False
        if len(left) == 1:
            return left
        self._one_by_one.extend(left)
        return ()
