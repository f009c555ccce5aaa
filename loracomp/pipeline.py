"""Encode, route, load; compose, predict: the order of a batch's steps, for the worker, replay and benchmarks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from loracomp import __version__
from loracomp.composition.predictor import Predictor
from loracomp.composition.resident import Loaded
from loracomp.composition.strategies import PackedAdapter
from loracomp.database.connections import Connection
from loracomp.database.routing import route
from loracomp.errors import JobError
from loracomp.model.cpu import ComputeThread
from loracomp.model.encoder import Encoder
from loracomp.model.loading import BaseModel
from loracomp.records import Answer, Composition, Failure, Job, Prediction, Request, Routed, Versions
from loracomp.registry.adapters import fetch_adapters


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A job that only the model is still needed for."""

    job: Job
    routed: Routed
    adapters: Loaded
    """Those of its batch, by id."""
    timings: Mapping[str, float]
    """Milliseconds of each step for its batch."""


class Pipeline:
    """A base model and an encoder, run over batches of claimed jobs.

    `prepare` and `answer` may run at the same time, each in one thread. On the CPU jobs are then encoded by the thread
    that answers, between its forward passes.
    """

    def __init__(self, base_name: str, base: BaseModel, encoder: Encoder, **predictor: Any) -> None:
        """`base_name` is the base model's in the database; the rest are `Predictor`'s settings."""
        self.base_name = base_name
        self.base = base
        self.encoder = encoder
        self._turns = ComputeThread()
        self._predictor = Predictor(base, **predictor)

    def predict(self, connection: Connection, requests: Sequence[Request]) -> list[Answer | JobError]:
        """Answer requests whose compositions are known; the connection reads adapters."""
        return self._predictor.predict(requests, partial(fetch_adapters, connection))

    def run(self, connection: Connection, jobs: Sequence[Job]) -> list[Prediction | Failure]:
        """Prepare and answer a batch: for each job that is still there a prediction, or a failure."""
        prepared = self.prepare(connection, jobs)
        failures = [each for each in prepared if isinstance(each, Failure)]
        return [*failures, *self.answer([each for each in prepared if isinstance(each, Prepared)])]

    def prepare(self, connection: Connection, jobs: Sequence[Job]) -> list[Prepared | Failure]:
        """All but the model, for each job: its vector, its route, and its adapters on the device.

        The connection, in autocommit mode, is lent for the call; no transaction is left open.
        """
        timings: dict[str, float] = {}

        def encoded() -> npt.NDArray[np.float32]:
            with _timed(timings, "encode"):
                return encode(self.encoder, jobs)

        with _timed(timings, "ready"):
            vectors = self._turns.run(encoded)
        timings["ready"] = round(timings["ready"] - timings["encode"], 3)
        with _timed(timings, "route"):
            found = route(connection, jobs, vectors, self.encoder.fingerprint, self.encoder.input_version)
            routes = {routed.job_id: routed for routed in found}
        with _timed(timings, "load"):
            asked = [routes[job.id].composition for job in jobs if job.kind == "predict" and job.id in routes]
            adapters = self._predictor.load(asked, partial(fetch_adapters, connection))
        return [
            Prepared(job, routes[job.id], adapters, timings)
            if job.id in routes
            else Failure(job.id, "job_purged", "the job was purged while it ran")
            for job in jobs
        ]

    def answer(
        self, prepared: Sequence[Prepared], wanted: Callable[[Job], bool] = lambda _: True
    ) -> list[Prediction | Failure]:
        """Each job's prediction, or why it has none.

        `wanted` is asked between forward passes; what is not wanted any more fails with 'lease_lost'.
        """
        asked = [each for each in prepared if each.job.kind == "predict"]
        adapters = {id_: adapter for each in asked for id_, adapter in each.adapters.items()}
        timings: dict[str, float] = {}
        with _timed(timings, "compose"):
            composed = self._predictor.compose([each.routed.composition for each in asked], adapters)
        with _timed(timings, "predict"), self._lending() as lent_s:
            requests = [_request(each.job, each.routed) for each in asked]

            def still_wanted(number: int) -> bool:
                self._turns.give_turn()
                return wanted(asked[number].job)

            answers = self._predictor.answer(requests, composed, still_wanted)
        timings["predict"] = round(timings["predict"] - 1000 * lent_s(), 3)
        answered = dict(zip(asked, answers, strict=True))
        return [self._prediction(each, answered.get(each), timings, len(prepared)) for each in prepared]

    def _lending(self) -> AbstractContextManager[Callable[[], float]]:
        # A GPU's work goes on while another thread prepares more.
        return self._turns.lend() if self.base.model.device.type == "cpu" else nullcontext(lambda: 0.0)

    def _prediction(
        self, prepared: Prepared, answer: Answer | JobError | None, timings: Mapping[str, float], batch_size: int
    ) -> Prediction | Failure:
        job_id, routed = prepared.job.id, prepared.routed
        if isinstance(answer, JobError):
            return Failure(job_id, answer.code, str(answer), answer.retry)
        return Prediction(
            job_id=job_id,
            trace=routed.trace,
            answer=answer,
            composition_digest=self._digest(routed.composition, prepared.adapters) if answer else None,
            batch_size=batch_size,
            timings={**prepared.timings, **timings},
            versions=self.versions,
        )

    def _digest(self, composition: Composition, adapters: Loaded) -> str:
        used = [adapters[id_] for id_ in composition.adapter_ids]
        scalings = [(each.scaling, sorted(each.roots.items())) for each in used if isinstance(each, PackedAdapter)]
        return composition.digest(self.base.fingerprint, scalings)

    @property
    def device(self) -> str:
        """Device and number type, such as cpu/bfloat16."""
        model = self.base.model
        return f"{model.device}/{str(model.dtype).removeprefix('torch.')}"

    @property
    def versions(self) -> Versions:
        """Who answers, for the record."""
        return Versions(
            device=self.device,
            base_model=self.base_name,
            base_fingerprint=self.base.fingerprint,
            encoder=f"{self.encoder.name}/{self.encoder.input_version}",
            code_version=__version__,
        )


def encode(encoder: Encoder, jobs: Sequence[Job]) -> npt.NDArray[np.float32]:
    """Unit vectors [len(jobs), dimensions] of what the encoder is shown of each job (`loracomp.model.encoding`)."""
    return encoder.encode([(job.prompt, job.choices) for job in jobs])


def _request(job: Job, routed: Routed) -> Request:
    return Request(
        prompt=job.prompt,
        choices=job.choices,
        max_new_tokens=job.max_new_tokens,
        stop=job.stop,
        normalization=routed.normalization,
        contrast=routed.contrast,
        composition=routed.composition,
        temperature=job.temperature,
        top_p=job.top_p,
        seed=job.id if job.seed is None else job.seed,
    )


@contextmanager
def _timed(timings: dict[str, float], step: str) -> Iterator[None]:
    """Note a step's milliseconds."""
    start = perf_counter()
    yield
    timings[step] = round((perf_counter() - start) * 1000, 3)
