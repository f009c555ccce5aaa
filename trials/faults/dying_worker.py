"""A worker process that dies where it is told to: `python dying_worker.py URL none|real`.

With none for a model, vectors come from a job's number, routes from the database, and the answer is the prompt in
capitals; with the real one, all is as `loracomp worker` does it.
DIE_AT names a point of a batch's life, DIE_AFTER the batch.
Other settings are LORACOMP_* variables; log lines go to standard error.
"""

import hashlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Timer
from typing import Any, TypeAlias

import numpy as np
import torch

from job_data import prediction
from loracomp.config import Settings, load_settings
from loracomp.database.connections import Connection, connect
from loracomp.database.queries import QUERIES
from loracomp.database.routing import route
from loracomp.errors import JobError
from loracomp.model.batching import halving_on_out_of_memory
from loracomp.records import Failure, Job, Measurement, Prediction, Routed
from loracomp.worker.loop import Worker
from loracomp.worker.process import serve
from routing_data import BASE_MODEL

FINGERPRINT = "e" * 64
POINTS = ("claimed", "encoding", "predicting", "before commit", "during commit", "after commit")
LARGEST_BATCH = 8
"""Of jobs that say "much": more than that and memory runs out."""
MORE_THAN_THERE_IS = 1 << 60
"""Numbers of a tensor that no machine holds."""
Prepared: TypeAlias = tuple[Job, Routed, str]


@dataclass
class Death:
    """SIGKILL by one's own hand, at a point and a batch given by the environment."""

    point: str = field(default_factory=lambda: os.environ.get("DIE_AT", ""))
    batches_left: int = field(default_factory=lambda: int(os.environ.get("DIE_AFTER", "1")))

    def at(self, point: str, how: Callable[[], object] | None = None) -> None:
        if point != self.point:
            return
        self.batches_left -= 1
        if self.batches_left <= 0:
            (how or die)()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class NoModel:
    """Encode and route like any pipeline; sleep for `seconds` where a model would compute."""

    base_name = BASE_MODEL

    def __init__(self, death: Death, seconds: float) -> None:
        self._death = death
        self._seconds = seconds

    def prepare(self, connection: Connection, jobs: Sequence[Job]) -> list[Prepared]:
        self._death.at("encoding")
        # A database of an older release has its encoder's version, and vectors as long as that has them.
        row = connection.execute(QUERIES["show_encoder"]).fetchone()
        assert row
        vectors = np.stack([np.random.default_rng(job.id).normal(size=row["dimensions"]) for job in jobs])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found = route(connection, jobs, vectors.astype(np.float32), FINGERPRINT, row["input_version"])
        routes = {each.job_id: each for each in found}
        weights = read_weights(connection, {id_ for each in found for id_ in each.composition.adapter_ids})
        return [(job, routes[job.id], digest(routes[job.id], weights)) for job in jobs]

    def answer(
        self,
        prepared: Sequence[Prepared],
        wanted: Callable[[Job], bool],
        arriving: Callable[[], Sequence[Prepared]],
    ) -> Iterator[list[Prediction | Failure]]:
        while prepared:
            time.sleep(self._seconds)
            self._death.at("predicting")
            yield failures_of([job for job, *_ in prepared], halving_on_out_of_memory(self._rows, prepared))
            prepared = arriving()

    def _rows(self, prepared: Sequence[Prepared]) -> list[Prediction | JobError]:
        misbehave([job for job, *_ in prepared])
        return [
            replace(
                prediction(job.id, output=job.prompt.upper(), batch_size=len(prepared), base_model=BASE_MODEL),
                composition_digest=weighed,
                trace=routed.trace,
            )
            for job, routed, weighed in prepared
        ]


class RealModel:
    """The database's base model and encoder; it does what prompts say before it answers. MODEL_S doesn't slow it."""

    def __init__(self, death: Death, settings: Settings, url: str) -> None:
        with connect(url) as connection:
            self._pipeline = load_pipeline(settings, connection)
        self._death = death
        self.base_name = self._pipeline.base_name

    def prepare(self, connection: Connection, jobs: Sequence[Job]) -> list[Any]:
        self._death.at("encoding")
        return self._pipeline.prepare(connection, jobs)

    def answer(
        self, prepared: Sequence[Any], wanted: Callable[[Job], bool], arriving: Callable[[], Sequence[Any]]
    ) -> Iterator[Sequence[Prediction | Measurement | Failure]]:
        failed: list[Failure] = []

        def fit(part: Sequence[Any]) -> list[Any]:
            misbehave([each.job for each in part])
            return list(part)

        def going_on(part: Sequence[Any]) -> list[Any]:
            found = failures_of([each.job for each in part], halving_on_out_of_memory(fit, part) if part else [])
            failed.extend(each for each in found if isinstance(each, Failure))
            return [each for each in found if not isinstance(each, Failure)]

        steps = self._pipeline.answer(going_on(prepared), wanted, lambda: going_on(arriving()))
        for ended in steps:
            self._death.at("predicting")
            yield [*ended, *failed]
            failed.clear()
        yield failed


def misbehave(jobs: Sequence[Job]) -> None:
    """What the prompts of jobs that are together tell of."""
    for job in jobs:
        match job.prompt.split():
            case ["die"]:
                die()
            case ["hang"]:
                time.sleep(3600)
            case ["much"] if len(jobs) > LARGEST_BATCH:
                torch.empty(MORE_THAN_THERE_IS)
            case ["too-much"]:
                torch.empty(MORE_THAN_THERE_IS)


def failures_of(jobs: Sequence[Job], results: Sequence[Any]) -> list[Any]:
    """Errors as the worker wants them."""
    return [
        Failure(job.id, each.code, str(each), each.retry) if isinstance(each, JobError) else each
        for job, each in zip(jobs, results, strict=True)
    ]


def read_weights(connection: Connection, adapter_ids: set[int]) -> dict[int, bytes]:
    rows = connection.execute(QUERIES["read_adapters"], {"adapter_ids": sorted(adapter_ids)}).fetchall()
    # Those that an older release of the tests made up have none.
    return {row["adapter_id"]: row["bytes"] or b"" for row in rows}


def digest(routed: Routed, weights: dict[int, bytes]) -> str:
    """Of the weights that an answer would rest on: it tells one version of an adapter from another."""
    return hashlib.sha256(b"".join(weights[id_] for id_ in routed.composition.adapter_ids)).hexdigest()


class Mortal(Worker):
    """Dies around claim and record."""

    death: Death

    def _claim(self, connection: Connection, most: int, held: frozenset[Job]) -> tuple[Job, ...]:
        jobs = super()._claim(connection, most, held)
        if jobs:
            self.death.at("claimed")
        return jobs

    def _record(self, batch: Any) -> None:
        self.death.at("before commit")
        self.death.at("during commit", lambda: Timer(0.001, die).start())
        super()._record(batch)
        self.death.at("after commit")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    settings = load_settings()
    death = Death()
    url, which = sys.argv[1:]
    model: Any
    if which == "real":
        from loracomp.worker.start import load_pipeline

        model = RealModel(death, settings, url)
    else:
        model = NoModel(death, float(os.environ.get("MODEL_S", "0.02")))
    worker = Mortal(url, model, base_model=model.base_name, settings=settings)
    worker.death = death
    sys.exit(serve(worker, settings.grace_s))
