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
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Timer
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from job_data import end
from loracomp.config import Settings, load_settings
from loracomp.database.connections import Connection, connect
from loracomp.database.queries import QUERIES
from loracomp.database.routing import route
from loracomp.engine.inflight import InFlight
from loracomp.errors import JobError
from loracomp.model.batching import halving_on_out_of_memory
from loracomp.records import Job, Routed
from loracomp.worker import claimer, keeper, leases, recorder
from loracomp.worker.process import serve
from loracomp.worker.worker import Worker
from made_up_engine import MadeUp
from routing_data import BASE_MODEL

FINGERPRINT = "e" * 64
POINTS = ("claimed", "encoding", "predicting", "before commit", "during commit", "after commit")
STEPS = (
    "ask_rows",
    "rescue_jobs",
    "wake_jobs",
    "take_answers",
    "measure_corrections",
    "make_partitions",
)
KEEPING = tuple(f"{when} the commit of {step}" for step in STEPS for when in ("during", "after"))
"""Points at which a keeper can die."""
LARGEST_BATCH = 8
"""Number of jobs that say "much" with which memory runs out."""
MORE_THAN_THERE_IS = 1 << 60
"""Number of elements of a tensor that fits into no machine."""


@dataclass
class Death:
    """Kill this process with SIGKILL, at the point and batch that the environment names."""

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


class NoModel(MadeUp):
    """An engine without a model, which encodes and routes like any other, and sleeps for `seconds` instead of
    computing."""

    base_name = BASE_MODEL

    def __init__(self, death: Death, seconds: float) -> None:
        super().__init__()
        self._death = death
        self._seconds = seconds
        self._digests: dict[InFlight, str] = {}

    def prepare(self, connection: Connection, flights: Sequence[InFlight]) -> None:
        self._death.at("encoding")
        # A database of an older release has its encoder's version, and vectors as long as that has them.
        row = connection.execute(QUERIES["show_encoder"]).fetchone()
        assert row
        jobs = [flight.job for flight in flights]
        vectors = np.stack([np.random.default_rng(job.id).normal(size=row["dimensions"]) for job in jobs])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found = route(connection, jobs, vectors.astype(np.float32), FINGERPRINT, row["input_version"])
        routes = {each.job_id: each for each in found}
        weights = read_weights(connection, {id_ for each in found for id_ in each.composition.adapter_ids})
        for flight in flights:
            flight.decision = routes[flight.job.id]
            self._digests[flight] = digest(routes[flight.job.id], weights)

    def step(self) -> list[InFlight]:
        self.schedule()
        time.sleep(self._seconds)
        self._death.at("predicting")
        ended = self.clear()
        fail(ended, halving_on_out_of_memory(self._together, ended))
        return ended

    def _together(self, flights: Sequence[InFlight]) -> list[JobError | None]:
        misbehave([flight.job for flight in flights])
        for flight in flights:
            decision = flight.decision
            end(
                flight,
                output=flight.job.prompt.upper(),
                batch_size=len(flights),
                base_model=BASE_MODEL,
                composition_digest=self._digests.pop(flight),
            )
            flight.decision = decision
        return [None] * len(flights)


class RealModel:
    """An engine with the database's base model and encoder, which does what prompts say before it answers. MODEL_S
    doesn't slow it down."""

    def __init__(self, death: Death, settings: Settings, url: str) -> None:
        with connect(url) as connection:
            self._engine = load_engine(settings, connection)
        self._death = death
        self.base_name = self._engine.base_name
        self._joining: list[InFlight] = []

    def __bool__(self) -> bool:
        return bool(self._joining or self._engine)

    def prepare(self, connection: Connection, flights: Sequence[InFlight]) -> None:
        self._death.at("encoding")
        self._engine.prepare(connection, flights)

    def embed(self, connection: Connection) -> int:
        return self._engine.embed(connection)

    def add(self, flight: InFlight) -> None:
        self._joining.append(flight)

    def step(self) -> list[InFlight]:
        joining = self._joining
        fail(joining, halving_on_out_of_memory(self._fit, joining) if joining else [])
        self._joining = []
        for flight in joining:
            if flight.result is None:
                self._engine.add(flight)
        ended = self._engine.step()
        if ended:
            self._death.at("predicting")
        return [*ended, *(flight for flight in joining if flight.result is not None and flight not in ended)]

    def clear(self) -> list[InFlight]:
        left, self._joining = self._joining, []
        return [*left, *self._engine.clear()]

    def _fit(self, flights: Sequence[InFlight]) -> list[JobError | None]:
        misbehave([flight.job for flight in flights])
        return [None] * len(flights)


def misbehave(jobs: Sequence[Job]) -> None:
    """Do what the prompts of jobs that run together ask for, such as failing or hanging."""
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


def fail(flights: Sequence[InFlight], errors: Sequence[JobError | None]) -> None:
    """End the jobs that have an error."""
    for flight, error in zip(flights, errors, strict=True):
        if error is not None:
            flight.fail(error)


def read_weights(connection: Connection, adapter_ids: set[int]) -> dict[int, bytes]:
    rows = connection.execute(QUERIES["read_adapters"], {"adapter_ids": sorted(adapter_ids)}).fetchall()
    # Adapters that an older release of the tests made up have no weights.
    return {row["adapter_id"]: row["bytes"] or b"" for row in rows}


def digest(routed: Routed, weights: dict[int, bytes]) -> str:
    """Return the digest of the weights behind an answer, which differs between versions of an adapter."""
    return hashlib.sha256(b"".join(weights[id_] for id_ in routed.composition.adapter_ids)).hexdigest()


@contextmanager
def dying(death: Death) -> Iterator[None]:
    """Make the worker die before or after a claim, a record, or a keeper's step that had something to do."""

    def claim_jobs(*arguments: Any, **given: Any) -> tuple[Job, ...]:
        jobs = leases.claim_jobs(*arguments, **given)
        if jobs:
            death.at("claimed")
        return jobs

    def write(connection: Connection, flights: Sequence[InFlight]) -> set[int]:
        death.at("before commit")
        death.at("during commit", lambda: Timer(0.001, die).start())
        ids = record(connection, flights)
        death.at("after commit")
        return ids

    def call(connection: Connection, step: str) -> int:
        death.at(f"during the commit of {step}", lambda: Timer(0.001, die).start())
        handled = call_step(connection, step)
        if handled or step in ("take_answers", "measure_corrections", "make_partitions"):
            death.at(f"after the commit of {step}")
        return handled

    record, call_step = recorder.record, keeper.call
    with (
        patch.object(claimer, "claim_jobs", claim_jobs),
        patch.object(recorder, "record", write),
        patch.object(keeper, "call", call),
    ):
        yield


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    settings = load_settings()
    death = Death()
    url, which = sys.argv[1:]
    model: Any
    if which == "real":
        from loracomp.worker.start import load_engine

        model = RealModel(death, settings, url)
    else:
        model = NoModel(death, float(os.environ.get("MODEL_S", "0.02")))
    worker = Worker(url, model, base_model=model.base_name, settings=settings)
    with dying(death):
        sys.exit(serve(worker, settings.grace_s))
