"""Answers jobs: `add` takes a prepared job, and each `step` of the model returns the jobs that it ended.

A step reads: schedule (embed the described choices of jobs that wait, compose them, and let them join), calibrate (a
pass over labelled rows, for jobs that join when these are scored), run (a pass that scores choices, or one more token
for each text), postprocess (take out the jobs that have all their answers).
"""

import logging
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch

from loracomp import __version__
from loracomp.composition.composer import Loaded
from loracomp.composition.strategies import Mix, PackedAdapter
from loracomp.database.connections import Connection, rows_within
from loracomp.database.queries import QUERIES
from loracomp.database.routing import read_labelled, route
from loracomp.engine import measuring
from loracomp.engine.answering import lease_lost
from loracomp.engine.calibration import Calibration, Calibrator
from loracomp.engine.describing import Described, Describer
from loracomp.engine.inflight import InFlight, lap, requests_of
from loracomp.engine.predictor import Predictor
from loracomp.engine.repeats import KnownVectors
from loracomp.errors import DeviceFailedError, JobError
from loracomp.model.cpu import ComputeThread
from loracomp.model.encoder import Encoder, Vector
from loracomp.model.loading import BaseModel
from loracomp.records import Composition, Job, Prediction, Request, Routed, Versions
from loracomp.registry.adapter_store import fetch_adapters
from loracomp.registry.embeddings import embed_some

_log = logging.getLogger(__name__)

Scheduled: TypeAlias = tuple[Request, Mix | JobError]
"""A request as the model gets it, and its mix, or the error that ends it."""
JOINING_S = 0.25
"""Seconds after which no other job joins in the same step, so that the model goes on with the jobs that it has. Jobs of
common length join within a hundredth of it; tokenising a job with a thousand choices takes seconds."""
EXAMPLES_TOGETHER = 16
"""Examples embedded at a time, between jobs: about a quarter of a second's work."""
EMBED_S, EMBED_LOCK_S = 5.0, 0.1
"""Seconds that a statement of embedding may take, and seconds that it may wait for a lock, such as the lock of a build
of the index."""


class Engine:
    """Runs a base model and an encoder over claimed jobs.

    `prepare` may run in one thread while `add` and `step` run in another. On the CPU, the thread of `step` then also
    encodes the jobs of `prepare`, between its steps (`ComputeThread`).
    """

    def __init__(self, base_name: str, base: BaseModel, encoder: Encoder, **predictor: Any) -> None:
        """`base_name` is the base model's name in the database; `predictor` are settings of `Predictor`."""
        self.base_name = base_name
        self.base = base
        self.encoder = encoder
        self.predictor = Predictor(base, **predictor)
        self._calibrator = Calibrator(self.predictor)
        self._answering = self.predictor.begin()
        self._turns = ComputeThread()
        self._describer = Describer(encoder)
        self._known = KnownVectors()
        self._embedded_to = 0
        """Id of the last example taken for embedding. The next call begins after it, so that an example that can't be
        embedded does not hold up the others."""
        self._waiting: list[InFlight] = []
        self._describing: dict[InFlight, Described] = {}
        """The jobs of `_waiting` of whose described choices some are embedded."""
        self._steps = 0
        self._last_turns: dict[str, int] = {}
        """For each submitter the last step that took up a job of theirs; forgotten when all ended."""
        self._calibrating: list[tuple[InFlight, Mix, Calibration]] = []
        self._running: list[InFlight] = []

    def __bool__(self) -> bool:
        """Whether any job is left for `step`."""
        return bool(self._waiting or self._calibrating or self._running)

    def predict(self, connection: Connection, requests: Sequence[Request]) -> list[Prediction | JobError]:
        """Answer requests whose compositions are known; adapters are read through the connection."""
        return self.predictor.predict(requests, partial(fetch_adapters, connection))

    def run(self, connection: Connection, jobs: Sequence[Job]) -> list[InFlight]:
        """Answer a batch of jobs: returns them with their results, in the same order."""
        flights = [InFlight(job) for job in jobs]
        self.prepare(connection, flights)
        self.answer(flights)
        return flights

    def answer(self, flights: Sequence[InFlight]) -> None:
        """Answer prepared jobs, all to their end."""
        for flight in flights:
            if flight.result is None:
                self.add(flight)
        while self:
            self.step()

    def prepare(self, connection: Connection, flights: Sequence[InFlight]) -> None:
        """Do all steps before the base model: encode, route (or plan what to measure), load adapters.

        A job that was purged meanwhile, or whose adapters to measure were all deleted, fails. The connection must be in
        autocommit mode, so that no transaction stays open. Raises SchemaMismatchError if the database has another
        encoder now.
        """
        routed = [flight.job for flight in flights if flight.job.kind != measuring.KIND]
        vectors, compared = self._turns.run(partial(self._encode, flights, routed))
        routes = route(connection, routed, vectors, self.encoder.identity, self.encoder.input_version)
        plans = measuring.plan_measurements(connection, [flight.job for flight in flights])
        decided: list[Routed | measuring.MeasurementPlan] = [*routes, *plans]
        decisions = {each.job_id: each for each in decided}
        labelled = read_labelled(connection, routed, routes)
        vector_of, compared_of = dict(zip(routed, vectors, strict=True)), dict(zip(routed, compared, strict=True))
        for flight in flights:
            if (decision := decisions.get(flight.job.id)) is None:
                flight.fail(_gone(flight.job))
                continue
            flight.decision = decision
            flight.labelled, flight.vector = labelled.get(flight.job.id, ()), vector_of.get(flight.job)
            flight.compared = compared_of.get(flight.job)
            flight.requests = requests_of(flight.job, decision)
        lap(flights, "route")
        compositions = [request.composition for flight in flights for request in flight.requests]
        adapters = self.predictor.load(compositions, partial(fetch_adapters, connection))
        for flight in flights:
            flight.adapters = adapters
        lap(flights, "load")

    def _encode(self, flights: Sequence[InFlight], routed: Sequence[Job]) -> tuple[Vector, Sequence[Vector]]:
        """The jobs' vectors, and the embeddings of their texts."""
        lap(flights, "ready")
        found = {job: known for job in routed if (known := self._known.get(job)) is not None}
        new = [job for job in routed if job not in found]
        shown = [(job.prompt, job.choices) for job in new]
        encoded = self.encoder.encode_parts(shown, [job.text_at if job.descriptions else None for job in new])
        for job, vector, compared in zip(new, *encoded, strict=True):
            found[job] = vector, compared
            self._known.put(job, vector, compared)
        lap(flights, "encode")
        vectors = np.stack([found[job][0] for job in routed]) if routed else encoded[0]
        return vectors, [found[job][1] for job in routed]

    def embed(self, connection: Connection) -> int:
        """Embed some of the train examples without an embedding; returns how many."""
        if not rows_within(connection, EMBED_S, QUERIES["has_unembedded"], lock_s=EMBED_LOCK_S)[0]["has"]:
            return 0
        embed = partial(
            embed_some,
            partial(rows_within, connection, EMBED_S, lock_s=EMBED_LOCK_S),
            self.encoder,
            most=EXAMPLES_TOGETHER,
            compute=self._turns.run,
        )
        taken, failed, added = embed(after=self._embedded_to)
        if not taken and self._embedded_to:
            taken, failed, added = embed(after=0)  # start again with the examples that were not drawn
        self._embedded_to = taken[0] if taken else 0
        for example_id, error in failed.items():
            _log.warning("not_embedded example=%s error=%r", example_id, error)
        return added

    def add(self, flight: InFlight) -> None:
        """Take a prepared job, which joins the others at the next step."""
        self._waiting.append(flight)
        # On a GPU there is nothing to lend: the other thread can encode while the GPU computes.
        if self.base.model.device.type == "cpu":
            self._turns.lend()

    def step(self) -> list[InFlight]:
        """Do one step of the model; returns the jobs that ended, each with its result."""
        self._schedule()
        self._calibrate()
        self._run()
        ended = self._postprocess()
        if not self:
            self._last_turns.clear()
        self._turns.give_turn() if self else self._turns.keep()
        return ended

    def clear(self) -> list[InFlight]:
        """Return the unfinished jobs, and forget them. After an error of `step` they may be added again."""
        calibrating = (flight for flight, _, _ in self._calibrating)
        left = list(dict.fromkeys([*self._running, *calibrating, *self._waiting]))  # one may have been about to join
        self._running, self._calibrating, self._waiting, self._answering = [], [], [], self.predictor.begin()
        self._describing.clear()
        self._calibrator.clear()
        self._turns.keep()
        return left

    def check_device(self) -> None:
        """Raise DeviceFailedError if a GPU reports an error that stays until the process ends.

        CUDA reports such an error at every call, so synchronising shows it.
        """
        devices = {each.device for each in self.base.model.parameters()}
        try:
            for device in devices:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise DeviceFailedError(f"the device computes nothing any more: {error}; start the worker again") from error

    def _schedule(self) -> None:
        """Let jobs join, in turns of their submitters, until JOINING_S are over; the others wait for the next step.

        The first jobs are those of the submitter of whom a step took up a job longest ago. Jobs that are no longer
        wanted come before all others, and end; jobs in the background come last.
        """
        self._steps += 1
        until = perf_counter() + JOINING_S
        for flight in sorted(self._waiting, key=self._turn):
            self._last_turns[flight.job.submitted_by] = self._steps
            while not self._has_joined(flight):
                if perf_counter() >= until:
                    return
            self._waiting.remove(flight)
            if perf_counter() >= until:
                return

    def _turn(self, flight: InFlight) -> tuple[bool, bool, int]:
        return flight.wanted(), flight.job.background, self._last_turns.get(flight.job.submitted_by, 0)

    def _has_joined(self, flight: InFlight) -> bool:
        """Let a job join, unless some of its described choices are not embedded yet: then embed a piece of them."""
        if not flight.wanted():
            self._describing.pop(flight, None)
            self._join(flight, [(request, lease_lost()) for request in flight.requests])
            return True
        if flight.job.descriptions is not None and flight.requests and not self._is_described(flight):
            return False
        lap([flight], "ready")
        own = self.predictor.compose([request.composition for request in flight.requests], flight.adapters)
        lap([flight], "compose")
        if flight.labelled and flight.vector is not None and isinstance(own[0], Mix):
            self._calibrating.append((flight, own[0], self._begin_calibration(flight, flight.vector, own[0])))
        else:
            self._join(flight, list(zip(flight.requests, own, strict=True)))
        return True

    def _is_described(self, flight: InFlight) -> bool:
        """Whether the request of a job has its similarities to the described choices; if not, embed a piece of them."""
        began = perf_counter()
        if (described := self._describing.get(flight)) is None:
            described = self._describing[flight] = self._describer.begin(flight.job, flight.labelled)
        self._describer.embed_some(described)
        flight.share(perf_counter() - began)
        if described.left:
            return False
        assert isinstance(flight.decision, Routed) and flight.compared is not None
        del self._describing[flight]
        flight.requests = requests_of(flight.job, flight.decision, described.similarities(flight.compared))
        flight.row_similarities = described.row_similarities
        return True

    def _begin_calibration(self, flight: InFlight, vector: Vector, mix: Mix) -> Calibration:
        """Calibrate the scores of a job's choices under its mix.

        The flight keeps its own request: after an error of a step it is added again, and calibrated again.
        """
        began = perf_counter()
        (request,) = flight.requests
        calibration = self._calibrator.begin(
            request,
            vector,
            flight.labelled,
            mix,
            flight.wanted,
            row_similarities=flight.row_similarities,
            background=flight.job.background,
        )
        flight.share(perf_counter() - began)
        return calibration

    def _calibrate(self) -> None:
        """Score some labelled rows, and let the jobs join whose rows are scored; an error takes the mix's place."""
        if not self._calibrating:
            return
        began = perf_counter()
        served = {*self._calibrator.step(in_background=all(flight.job.background for flight in self._running))}
        took_s = perf_counter() - began
        for flight, _, calibration in self._calibrating:
            if calibration in served:
                flight.share(took_s / len(served))
                flight.worked_s += took_s
        ended = [each for each in self._calibrating if each[2].outcome is not None]
        self._calibrating = [each for each in self._calibrating if each[2].outcome is None]
        lap([flight for flight, _, _ in ended], "calibrate")
        for flight, mix, calibration in ended:
            if isinstance(outcome := calibration.outcome, Request):
                self._join(flight, [(outcome, mix)])
            elif outcome is not None:
                self._join(flight, [(flight.requests[0], outcome)])

    def _join(self, flight: InFlight, scheduled: Sequence[Scheduled]) -> None:
        self._running.append(flight)
        flight.batch_size = len(self._running)
        flight.pending = [
            self._answering.add(request, mix, flight.wanted, background=flight.job.background)
            for request, mix in scheduled
        ]

    def _run(self) -> None:
        waiting = [flight.unanswered for flight in self._running]
        unscored = [flight.unscored for flight in self._running]
        began = perf_counter()
        self._answering.step()
        took_s = perf_counter() - began
        for flight, requests, passes in zip(self._running, waiting, unscored, strict=True):
            flight.share(took_s * requests / max(1, sum(waiting)))
            if flight.unscored < passes:
                flight.worked_s += took_s

    def _postprocess(self) -> list[InFlight]:
        ended = [flight for flight in self._running if not flight.unanswered]
        for flight in ended:
            self._finish(flight)
        self._running = [flight for flight in self._running if flight.unanswered]
        lap(ended, "predict")
        return ended

    def _finish(self, flight: InFlight) -> None:
        outcomes = [each.outcome for each in flight.pending]
        if error := next((each for each in outcomes if isinstance(each, JobError)), None):
            flight.fail(error)
            return
        decision, predictions = flight.decision, [each for each in outcomes if isinstance(each, Prediction)]
        flight.versions = self.versions
        if isinstance(decision, measuring.MeasurementPlan):
            flight.result = decision.measurement(flight.job, predictions)
        elif decision is not None and predictions:
            flight.result = predictions[0]
            flight.composition_digest = self._digest(decision.composition, flight.adapters)
        else:
            flight.result = decision

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


def _gone(job: Job) -> JobError:
    """Why nothing was decided for a job."""
    if job.kind == measuring.KIND:
        return JobError("the adapters that it was to measure were deleted while it ran", code="adapters_deleted")
    return JobError("the job was purged while it ran", code="job_purged")
