"""A worker whose model sleeps as long as a device would compute, and says so: `python sleeper.py URL`."""

import logging
import sys
import time
from collections.abc import Callable, Sequence

from job_data import BASE, prediction
from loracomp.config import load_settings
from loracomp.database.connections import Connection
from loracomp.records import Failure, Job, Prediction
from loracomp.worker.loop import Worker
from loracomp.worker.process import serve

BATCH_S, JOB_S = 0.2, 0.05
"""Seconds that a batch takes, and each of its jobs besides: a full batch of 16 takes one second."""


class Sleeper:
    """Answers with the prompt."""

    def prepare(self, connection: Connection, jobs: Sequence[Job]) -> list[Job]:
        return list(jobs)

    def answer(self, jobs: Sequence[Job], wanted: Callable[[Job], bool]) -> list[Prediction | Failure]:
        seconds = BATCH_S + JOB_S * len(jobs)
        time.sleep(seconds)
        timings = {"encode": 0, "route": 0, "predict": 1000 * seconds}
        return [prediction(job.id, output=job.prompt, timings=timings, batch_size=len(jobs)) for job in jobs]


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    settings = load_settings()
    sys.exit(serve(Worker(sys.argv[1], Sleeper(), base_model=BASE, settings=settings), settings.grace_s))
