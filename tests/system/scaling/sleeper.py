"""A worker whose model sleeps as long as a device would compute, and says so: `python sleeper.py URL`."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence

from job_data import BASE, end
from loracomp.config import load_settings
from loracomp.database.connections import Connection
from loracomp.engine.inflight import InFlight, lap
from loracomp.errors import JobError
from loracomp.worker.process import serve
from loracomp.worker.worker import Worker
from made_up_engine import MadeUp

STEP_S, JOB_S = 0.05, 0.02
"""Seconds that a step of the model takes, and each job in it besides."""
TEXT_STEPS = 8
"""Steps until a text is written; choices are scored in one."""


class Sleeper(MadeUp):
    """Answers with the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: Counter[InFlight] = Counter()

    def prepare(self, connection: Connection, flights: Sequence[InFlight]) -> None:
        """Note the steps that `worker_demand` adds up."""
        lap(flights, "encode")
        lap(flights, "route")

    def step(self) -> list[InFlight]:
        self.schedule()
        seconds = STEP_S + JOB_S * len(self.flights)
        time.sleep(seconds)
        self._steps.update(self.flights)
        for flight in self.flights:
            flight.share(seconds / len(self.flights))
        ended = [flight for flight in self.flights if self._steps[flight] == _steps(flight) or not flight.wanted()]
        for flight in ended:
            self.end(flight)
        lap(ended, "predict")
        self.flights = [flight for flight in self.flights if flight not in ended]
        return ended

    def end(self, flight: InFlight) -> None:
        if self._steps.pop(flight) < _steps(flight):
            flight.fail(JobError("its lease was lost", code="lease_lost"))
        else:
            end(flight, output=flight.job.prompt)


def _steps(flight: InFlight) -> int:
    return 1 if flight.job.choices else TEXT_STEPS


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    settings = load_settings()
    sys.exit(serve(Worker(sys.argv[1], Sleeper(), base_model=BASE, settings=settings), settings.grace_s))
