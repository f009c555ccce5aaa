"""Encode, route, load; compose, predict: the order of a batch's steps, for the worker, replay and benchmarks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from pgvector import HalfVector

from loracomp import __version__
from loracomp.composition.resident import Loaded
from loracomp.composition.strategies import AdapterWeights
from loracomp.database.connections import Connection
from loracomp.errors import JobError
from loracomp.model.cpu import ComputeThread
from loracomp.model.encoder import Encoder
from loracomp.model.loading import BaseModel
from loracomp.records import Answer, Failure, Job, Request, Route
from loracomp.registry.adapters import fetch_adapters
from loracomp.steps.encode import encode
from loracomp.steps.predict import Predictor
from loracomp.steps.route import route


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A job that only the model is still needed for."""

    job: Job
    vector: npt.NDArray[np.float32]
    routed: Route
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
        self._connection: Connection | None = None
        self._turns = ComputeThread()
        self._predictor = Predictor(base, self._fetch, **predictor)

    def predict(self, connection: Connection, requests: Sequence[Request]) -> list[Answer | JobError]:
        """Answer requests whose compositions are known; the connection reads adapters."""
        self._connection = connection
        return self._predictor.predict(requests)

    def run(self, connection: Connection, jobs: Sequence[Job]) -> list[dict[str, Any] | Failure]:
        """Prepare and answer a batch: for each job that is still there a row of loracomp.prediction, or a failure."""
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
            self._connection = connection
            asked = [routes[job.id].composition for job in jobs if job.kind == "predict" and job.id in routes]
            adapters = self._predictor.load(asked)
        return [
            Prepared(job, vector, routes[job.id], adapters, timings)
            if job.id in routes
            else Failure(job.id, "job_purged", "the job was purged while it ran")
            for job, vector in zip(jobs, vectors, strict=True)
        ]

    def answer(
        self, prepared: Sequence[Prepared], wanted: Callable[[Job], bool] = lambda _: True
    ) -> list[dict[str, Any] | Failure]:
        """For each job a row of loracomp.prediction, but worker, attempt and fence, or why it has none.

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
        return [self._row(each, answered.get(each), timings, len(prepared)) for each in prepared]

    def _lending(self) -> AbstractContextManager[Callable[[], float]]:
        # A GPU's work goes on while another thread prepares more.
        return self._turns.lend() if self.base.model.device.type == "cpu" else nullcontext(lambda: 0.0)

    def _row(
        self, prepared: Prepared, answer: Answer | JobError | None, timings: Mapping[str, float], batch_size: int
    ) -> dict[str, Any] | Failure:
        job_id = prepared.job.id
        if isinstance(answer, JobError):
            return Failure(job_id, answer.code, str(answer), answer.retry)
        return {
            "job_id": job_id,
            **_answer_columns(answer),
            **_route_columns(prepared.routed, prepared.vector, self.base.fingerprint),
            "timings": {**prepared.timings, **timings},
            "batch_size": batch_size,
            **self._versions(),
        }

    def _fetch(self, adapter_ids: Sequence[int]) -> list[AdapterWeights]:
        assert self._connection is not None
        return fetch_adapters(self._connection, adapter_ids)

    @property
    def device(self) -> str:
        """Device and number type, such as cpu/bfloat16."""
        model = self.base.model
        return f"{model.device}/{str(model.dtype).removeprefix('torch.')}"

    def _versions(self) -> dict[str, object]:
        return {
            "device": self.device,
            "base_model": self.base_name,
            "base_fingerprint": self.base.fingerprint,
            "encoder": f"{self.encoder.name}/{self.encoder.input_version}",
            "code_version": __version__,
        }


def _request(job: Job, routed: Route) -> Request:
    return Request(
        prompt=job.prompt,
        choices=job.choices,
        max_new_tokens=job.max_new_tokens,
        stop=job.stop,
        normalization=routed.policy["choice_normalization"],
        contrast=routed.policy["contrast"],
        composition=routed.composition,
        temperature=job.temperature,
        top_p=job.top_p,
        seed=job.id if job.seed is None else job.seed,
    )


def _answer_columns(answer: Answer | None) -> dict[str, object]:
    if answer is None:  # a job of kind route
        return {}
    return {
        "output": answer.output,
        "choice_index": answer.choice_index,
        "choice_scores": answer.choice_scores,
        "prompt_tokens": answer.prompt_tokens,
        "output_tokens": answer.output_tokens,
        "norm_ratio": answer.norm_ratio,
        "cosine": answer.cosine,
    }


def _route_columns(routed: Route, vector: npt.NDArray[np.float32], fingerprint: str) -> dict[str, object]:
    composition = routed.composition
    return {
        "query_embedding": HalfVector(vector),
        "example_ids": routed.example_ids,
        "example_tasks": routed.example_tasks,
        "similarities": routed.similarities,
        "tasks": routed.tasks,
        "probabilities": routed.probabilities,
        "weights": routed.weights,
        "composed_tasks": routed.composed_tasks,
        "adapter_ids": composition.adapter_ids,
        "adapter_sha256": composition.adapter_sha256,
        "adapter_weights": composition.weights,
        "policy": routed.policy,
        "fallback": routed.fallback,
        "composition_digest": composition.digest(fingerprint),
    }


@contextmanager
def _timed(timings: dict[str, float], step: str) -> Iterator[None]:
    """Note a step's milliseconds."""
    start = perf_counter()
    yield
    timings[step] = round((perf_counter() - start) * 1000, 3)
