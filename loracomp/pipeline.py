"""Runs the steps of a batch in order, from encode to predict, for the worker, replay and benchmarks."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from loracomp import __version__
from loracomp.composition.answering import Answering
from loracomp.composition.calibration import Calibrator
from loracomp.composition.composer import Composed
from loracomp.composition.predictor import Predictor
from loracomp.composition.requests import measurement, requests_of
from loracomp.composition.resident import Loaded
from loracomp.composition.strategies import PackedAdapter
from loracomp.database.connections import Connection
from loracomp.database.measuring import plan_measurements
from loracomp.database.routing import read_labelled, route
from loracomp.errors import (
    DatabaseUnavailableError,
    EncoderChangedError,
    JobError,
    LoracompError,
    SchemaMismatchError,
)
from loracomp.model.cpu import ComputeThread, in_a_passing_thread
from loracomp.model.encoder import Encoder
from loracomp.model.loading import BaseModel
from loracomp.records import (
    Answer,
    Composition,
    Failure,
    Job,
    LabelledRow,
    Measurement,
    MeasurementPlan,
    Prediction,
    Request,
    Routed,
    Versions,
)
from loracomp.registry.adapter_weights import fetch_adapters
from loracomp.registry.encoders import load_registered_encoder

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A job that is encoded and routed, with its adapters loaded; only compose, calibrate and predict are left."""

    job: Job
    decided: Routed | MeasurementPlan
    requests: tuple[Request, ...]
    """What the model is asked: one request for kind 'predict', none for 'route'.

    For 'measure' there is one for each of the plan's compositions.
    """
    labelled: tuple[LabelledRow, ...]
    """Rows on which biases of the job's choices are fitted; empty: the choices have no biases."""
    adapters: Loaded
    """All adapters of its batch, by id."""
    versions: Versions
    """Among them the encoder's, which another may replace before the job is answered."""
    timings: Mapping[str, float]
    """Milliseconds that each step so far took for its whole batch."""


class Pipeline:
    """Runs a base model and an encoder over batches of claimed jobs.

    `prepare` and `answer` may run at the same time, each in its own thread. On the CPU, the thread in `answer` then
    also encodes the jobs of `prepare`, between its forward passes (`ComputeThread`).
    """

    def __init__(self, base_name: str, base: BaseModel, encoder: Encoder, **predictor: Any) -> None:
        """`base_name` is the base model's name in the database; `predictor` are settings of `Predictor`."""
        self.base_name = base_name
        self.base = base
        self.encoder = encoder
        self._turns = ComputeThread()
        self._predictor = Predictor(base, **predictor)
        self._calibrator = Calibrator(self._predictor)

    def predict(self, connection: Connection, requests: Sequence[Request]) -> list[Answer | JobError]:
        """Answer requests whose compositions are known; adapters are read through the connection."""
        return self._predictor.predict(requests, partial(fetch_adapters, connection))

    def run(self, connection: Connection, jobs: Sequence[Job]) -> list[Prediction | Measurement | Failure]:
        """Prepare and answer a batch: returns each job's prediction or measurement, or a failure."""
        prepared = self.prepare(connection, jobs)
        failures = [each for each in prepared if isinstance(each, Failure)]
        answered = self.answer([each for each in prepared if isinstance(each, Prepared)])
        return [*failures, *chain.from_iterable(answered)]

    def prepare(self, connection: Connection, jobs: Sequence[Job]) -> list[Prepared | Failure]:
        """For each job, do all steps before the base model: encode, route (or plan what to measure), load adapters.

        The connection must be in autocommit mode, so that no transaction stays open. If the database's encoder was
        changed, the new one is loaded first. Raises SchemaMismatchError if it can't be loaded.
        """
        while True:
            try:
                return self._prepare(connection, jobs)
            except EncoderChangedError:
                self._follow_encoder(connection)

    def _follow_encoder(self, connection: Connection) -> None:
        device = str(self.encoder.model.device)
        try:
            self.encoder = in_a_passing_thread(lambda: load_registered_encoder(connection, device))
        except DatabaseUnavailableError:
            raise
        except LoracompError as error:
            raise SchemaMismatchError(
                f"the database's encoder was changed, and this worker can't load the new one: {error}"
            ) from error
        _log.info("the database's encoder is %s now", self.encoder.name)

    def _prepare(self, connection: Connection, jobs: Sequence[Job]) -> list[Prepared | Failure]:
        timings: dict[str, float] = {}
        versions = self.versions
        measured = [job for job in jobs if job.kind == "measure"]
        routed = [job for job in jobs if job.kind != "measure"]

        def encoded() -> npt.NDArray[np.float32]:
            with _timed(timings, "encode"):
                return encode(self.encoder, routed)

        with _timed(timings, "ready"):
            vectors = self._turns.run(encoded)
        timings["ready"] = round(timings["ready"] - timings["encode"], 3)
        with _timed(timings, "route"):
            routes = route(connection, routed, vectors, self.encoder.fingerprint, self.encoder.input_version)
            plans = plan_measurements(connection, measured)
            decided = _by_job(routes) | _by_job(plans)
            requests = {job: requests_of(job, decided[job.id]) for job in jobs if job.id in decided}
            labelled = read_labelled(connection, routed, routes)
        with _timed(timings, "load"):
            asked = [request.composition for each in requests.values() for request in each]
            adapters = self._predictor.load(asked, partial(fetch_adapters, connection))
        return [
            Prepared(job, decided[job.id], requests[job], labelled.get(job.id, ()), adapters, versions, timings)
            if job in requests
            else Failure(job.id, "job_purged", "the job was purged while it ran")
            for job in jobs
        ]

    def answer(
        self,
        prepared: Sequence[Prepared],
        wanted: Callable[[Job], bool] = lambda _: True,
        arriving: Callable[[], Sequence[Prepared]] = lambda: (),
    ) -> Iterator[list[Prediction | Measurement | Failure]]:
        """Yield after each step of the model the predictions, measurements and failures of the jobs that it ended.

        Then the jobs that `arriving` returns join the unfinished ones. `wanted` is called between forward passes; a job
        for which it returns False fails with 'lease_lost'. Ends when no job is unfinished and none arrives.
        """
        under_way = _UnderWay(self._predictor.begin())
        with self._lending() as lent_s:
            under_way.add(self._composed(prepared, wanted), wanted, lent_s())
            while under_way:
                yield [self._result(each) for each in under_way.step(lent_s)]
                self._turns.give_turn()
                under_way.add(self._composed(arriving(), wanted), wanted, lent_s())

    def _composed(self, prepared: Sequence[Prepared], wanted: Callable[[Job], bool]) -> list["_Asked"]:
        """Compose adapters, and calibrate choices, for jobs that join the model's running jobs at the same time."""
        compositions = [request.composition for each in prepared for request in each.requests]
        adapters = {id_: adapter for each in prepared for id_, adapter in each.adapters.items()}
        timings: dict[str, float] = {}
        with _timed(timings, "compose"):
            composed = iter(self._predictor.compose(compositions, adapters))
        with _timed(timings, "calibrate") if any(each.labelled for each in prepared) else nullcontext():
            return [
                self._asked(each, list(islice(composed, len(each.requests))), timings, partial(wanted, each.job))
                for each in prepared
            ]

    def _asked(
        self,
        prepared: Prepared,
        composed: Sequence[Composed | JobError],
        timings: Mapping[str, float],
        wanted: Callable[[], bool],
    ) -> "_Asked":
        if not (prepared.labelled and composed) or isinstance(composed[0], JobError):
            return _Asked(prepared, prepared.requests, composed, timings)
        try:
            request = self._calibrator.with_biases(prepared.requests[0], prepared.labelled, composed[0], wanted)
        except JobError as error:
            return _Asked(prepared, prepared.requests, [error], timings)
        return _Asked(prepared, (request,), composed, timings)

    def _lending(self) -> AbstractContextManager[Callable[[], float]]:
        # On a GPU there is nothing to lend: the other thread can encode while the GPU computes.
        return self._turns.lend() if self.base.model.device.type == "cpu" else nullcontext(lambda: 0.0)

    def _result(self, asked: "_Asked") -> Prediction | Measurement | Failure:
        prepared, job, decided = asked.prepared, asked.prepared.job, asked.prepared.decided
        if error := next((each for each in asked.answers if isinstance(each, JobError)), None):
            return Failure(job.id, error.code, str(error), error.retry)
        given = [each for each in asked.answers if isinstance(each, Answer)]
        timings = {**prepared.timings, **asked.timings}
        if isinstance(decided, MeasurementPlan):
            return measurement(job, decided, given, timings)
        return Prediction(
            job_id=job.id,
            trace=decided.trace,
            answer=given[0] if given else None,
            composition_digest=self._digest(decided.composition, prepared.adapters) if given else None,
            batch_size=asked.together,
            timings=timings,
            versions=prepared.versions,
        )

    def _digest(self, composition: Composition, adapters: Loaded) -> str:
        used = [adapters[id_] for id_ in composition.adapter_ids]
        scalings = [(each.scaling, sorted(each.roots.items())) for each in used if isinstance(each, PackedAdapter)]
        return composition.digest(self.base.fingerprint, scalings)

    @property
    def device(self) -> str:
        """The base model's device and dtype, such as cpu/bfloat16."""
        model = self.base.model
        return f"{model.device}/{str(model.dtype).removeprefix('torch.')}"

    @property
    def versions(self) -> Versions:
        """The device, models and code version that are recorded with each prediction."""
        return Versions(
            device=self.device,
            base_model=self.base_name,
            base_fingerprint=self.base.fingerprint,
            encoder=f"{self.encoder.name}/{self.encoder.input_version}",
            code_version=__version__,
        )


@dataclass(slots=True, eq=False)
class _Asked:
    """A job with the answers that its requests have so far."""

    prepared: Prepared
    requests: Sequence[Request]
    """Those of `prepared`, with the biases of the choices."""
    composed: Sequence[Composed | JobError]
    timings: Mapping[str, float]
    answers: list[Answer | JobError | None] = field(default_factory=list)
    """One for each request; None if it is not answered yet."""
    together: int = 1
    """Number of unfinished jobs when it joined, itself included."""
    since: float = 0.0
    """When it joined, by perf_counter."""
    lent_s: float = 0.0
    """Seconds that the thread had worked for other threads until it joined."""
    model_s: float = 0.0
    """Its share of the seconds that the model has worked since."""


class _UnderWay:
    """The unfinished jobs of the model. A job ends when its last request is answered."""

    def __init__(self, answering: Answering[tuple[_Asked, int]]) -> None:
        self._answering = answering
        self._jobs: list[_Asked] = []

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, jobs: Sequence[_Asked], wanted: Callable[[Job], bool], lent_s: float) -> None:
        """Add jobs, which the next steps answer."""
        self._jobs += jobs
        for asked in jobs:
            asked.together, asked.since, asked.lent_s = len(self._jobs), perf_counter(), lent_s
            asked.answers = [None] * len(asked.composed)
            still = partial(wanted, asked.prepared.job)
            for number, (request, composed) in enumerate(zip(asked.requests, asked.composed, strict=True)):
                self._answering.add((asked, number), request, composed, still)

    def step(self, lent_s: Callable[[], float]) -> list[_Asked]:
        """Run a step of the model; returns the ended jobs with their times, without other threads' work.

        `predict` is the time since the job joined, and `model` its share of that: the time of each step is divided
        among the requests that are not answered yet.
        """
        began, lent_before_s = perf_counter(), lent_s()
        waiting = [asked.answers.count(None) for asked in self._jobs]
        for (asked, number), answer in self._answering.step():
            asked.answers[number] = answer
        of_a_request_s = (perf_counter() - began - (lent_s() - lent_before_s)) / max(1, sum(waiting))
        for asked, requests in zip(self._jobs, waiting, strict=True):
            asked.model_s += requests * of_a_request_s
        ended = [asked for asked in self._jobs if None not in asked.answers]
        self._jobs = [asked for asked in self._jobs if None in asked.answers]
        for asked in ended:
            predict_s = perf_counter() - asked.since - (lent_s() - asked.lent_s)
            times = {"predict": round(1000 * predict_s, 3), "model": round(1000 * asked.model_s, 3)}
            asked.timings = {**asked.timings, **times}
        return ended


def encode(encoder: Encoder, jobs: Sequence[Job]) -> npt.NDArray[np.float32]:
    """The jobs' unit vectors [len(jobs), dimensions], made from prompts and choices (`loracomp.model.encoding`)."""
    return encoder.encode([(job.prompt, job.choices) for job in jobs])


def _by_job(decided: Sequence[Routed | MeasurementPlan]) -> dict[int, Routed | MeasurementPlan]:
    return {each.job_id: each for each in decided}


@contextmanager
def _timed(timings: dict[str, float], step: str) -> Iterator[None]:
    """Store in `timings` how many milliseconds the context took, as the time of `step`."""
    start = perf_counter()
    yield
    timings[step] = round((perf_counter() - start) * 1000, 3)
