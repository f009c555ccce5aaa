"""A worker whose model sleeps as long as a device would compute, and says so: `python sleeper.py URL`."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from job_data import BASE, prediction
from loracomp.config import load_settings
from loracomp.database.connections import Connection
from loracomp.records import Failure, Job, Prediction
from loracomp.worker.loop import Worker
from loracomp.worker.process import serve

STEP_S, JOB_S = 0.05, 0.02
"""Seconds that a step of the model takes, and each job in it besides."""
TEXT_STEPS = 8
"""Steps until a text is written; choices are scored in one."""


class Sleeper:
    """Answers with the prompt."""

    def prepare(self, connection: Connection, jobs: Sequence[Job]) -> list[Job]:
        return list(jobs)

    def answer(
        self, jobs: Sequence[Job], wanted: Callable[[Job], bool], arriving: Callable[[], Sequence[Job]]
    ) -> Iterator[list[Prediction | Failure]]:
        left = joined(jobs, 0)
        while left:
            seconds = STEP_S + JOB_S * len(left)
            time.sleep(seconds)
            for each in left:
                each.work(seconds, len(left))
            ended = [each for each in left if not each.steps or not wanted(each.job)]
            left = [each for each in left if each not in ended]
            yield [each.result() for each in ended]
            left += joined(arriving(), len(left))


@dataclass
class Asked:
    """A job under way."""

    job: Job
    together: int
    """As batch_size of a prediction."""
    steps: int
    predict_s: float = 0
    model_s: float = 0

    def work(self, seconds: float, together: int) -> None:
        """Take part in a step of so many seconds and jobs."""
        self.steps -= 1
        self.predict_s += seconds
        self.model_s += seconds / together

    def result(self) -> Prediction | Failure:
        if self.steps:
            return Failure(self.job.id, "lease_lost", "its lease was lost")
        timings = {"encode": 0, "route": 0, "predict": 1000 * self.predict_s, "model": 1000 * self.model_s}
        return prediction(self.job.id, output=self.job.prompt, timings=timings, batch_size=self.together)


def joined(jobs: Sequence[Job], others: int) -> list[Asked]:
    """Jobs that join so many others."""
    return [Asked(job, others + len(jobs), 1 if job.choices else TEXT_STEPS) for job in jobs]


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    settings = load_settings()
    sys.exit(serve(Worker(sys.argv[1], Sleeper(), base_model=BASE, settings=settings), settings.grace_s))
