"""A job on its way from claim to record: one record, on which each step writes what it found and how long it took."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from loracomp import metrics
from loracomp.engine.measuring import Measurement, MeasurementPlan
from loracomp.engine.series import series_of
from loracomp.errors import JobError
from loracomp.records import MIX_ALONE, Failure, Job, LabelledRow, Prediction, Request, Routed, Versions

if TYPE_CHECKING:
    from loracomp.composition.strategies import PackedAdapter
    from loracomp.engine.answering import PendingRequest

Result: TypeAlias = Prediction | Routed | Measurement | Failure
"""What a job ended with. A job of kind 'route' ends with what routing decided."""

SHARED = frozenset({"encode", "route", "load", "compose"})
"""Steps whose time is divided among the jobs that went through them together. What the model computes is divided as it
works (`Engine.step`)."""


@dataclass(slots=True, eq=False)
class InFlight:
    """A job in flight. Its claim fills the first three fields, and `Engine` the others except `recorded`."""

    job: Job
    wanted: Callable[[], bool] = lambda: True
    """Whether its answer is still needed. Called between forward passes; if False, it fails with 'lease_lost'."""
    since: float = field(default_factory=perf_counter)
    """When its current step began, by perf_counter."""
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds of each step, and the job's share of computing. Only `lap` and `share` write here."""
    decision: Routed | MeasurementPlan | None = None
    requests: tuple[Request, ...] = ()
    """What the job asks (`requests_of`). Calibration changes a copy, because a job may be scheduled twice."""
    vector: npt.NDArray[np.float32] | None = None
    """The unit vector by which the job was routed; None for a job of kind 'measure'."""
    compared: npt.NDArray[np.float32] | None = None
    """The unit embedding of the job's text, which is compared with described choices; None for a job of kind
    'measure'."""
    row_similarities: npt.NDArray[np.float32] | None = None
    """Similarities [rows, choices] of the labelled rows' texts to described choices; None until they are compared."""
    labelled: tuple[LabelledRow, ...] = ()
    """Labelled rows on which the scores of its choices are calibrated; if empty, they are not calibrated."""
    adapters: Mapping[int, "PackedAdapter | JobError"] = field(default_factory=dict)
    """Loaded adapters by their ids (`composer.Loaded`): all that its requests use, and some of other jobs."""
    pending: Sequence["PendingRequest"] = ()
    """Its requests in the model, with their outcomes so far."""
    worked_s: float = 0.0
    """Duration of the passes that scored choices of its requests, or its labelled rows, in seconds."""
    batch_size: int = 1
    """Number of jobs that the model had when this one joined, itself included."""
    result: Result | None = None
    composition_digest: str | None = None
    """Digest of the composition that answered the job; None for a job of kind 'route', which composes nothing."""
    versions: Versions | None = None
    """Versions of the engine that answered the job; None if the job failed."""
    recorded: bool | None = None
    """Whether the result was recorded; None until that was tried."""

    @property
    def unanswered(self) -> int:
        """Number of its requests that the model has yet to answer."""
        return sum(each.outcome is None for each in self.pending)

    @property
    def unscored(self) -> int:
        """Number of passes that the model still needs to score the choices of its requests."""
        return sum(len(each.parts) for each in self.pending)

    @property
    def begun(self) -> bool:
        """Whether the model has begun it, or has nothing to do for it."""
        return not self.pending or any(each.begun for each in self.pending)

    def fail(self, error: JobError) -> None:
        """End the job with a failure."""
        self.result = Failure(self.job.id, error.code, str(error), error.retry)

    def share(self, seconds: float) -> None:
        """Add to the job's share of the time in which the worker computes for several jobs."""
        self.timings["share"] = self.timings.get("share", 0.0) + 1000 * seconds


def lap(flights: Sequence[InFlight], step: str, *, observed: bool = True) -> None:
    """End a step of these jobs: each gets the time since its last step ended, so that no moment counts twice.

    The time of a step in SHARED is also divided among the jobs, as their shares. Jobs whose step began at the same time
    went through it together, so the metrics observe it once for all of them.
    """
    now = perf_counter()
    if observed:
        for since in {flight.since for flight in flights}:
            metrics.STEP_SECONDS.labels(step).observe(now - since)
    for flight in flights:
        flight.timings[step] = flight.timings.get(step, 0.0) + 1000 * (now - flight.since)
        if step in SHARED:
            flight.share((now - flight.since) / len(flights))
        flight.since = now


def requests_of(
    job: Job, decided: Routed | MeasurementPlan, similarities: npt.NDArray[np.float32] | None = None
) -> tuple[Request, ...]:
    """What to ask the model: one request for a job of kind 'predict', none for 'route'; else the plan says.

    `similarities` are the cosine similarities of the prompt to each described choice.

    Raises JobError for a kind that this release does not know.
    """
    if isinstance(decided, MeasurementPlan):
        return decided.requests(job)
    if job.kind not in {"predict", "route"}:
        error = f"this worker's release knows no jobs of kind {job.kind}: upgrade the worker"
        raise JobError(error, code="unknown_kind", retry=True)
    return (_request(job, decided, similarities),) if job.kind == "predict" else ()


def _request(job: Job, routed: Routed, similarities: npt.NDArray[np.float32] | None) -> Request:
    return Request(
        prompt=job.prompt,
        choices=job.choices,
        max_new_tokens=job.max_new_tokens,
        stop=job.stop,
        normalization=routed.normalization,
        description_similarities=() if similarities is None else tuple(similarities.tolist()),
        score_weights=MIX_ALONE if similarities is None else (1.0, 0.0, routed.description_weight or 0.0),
        composition=routed.composition,
        temperature=job.temperature,
        top_p=job.top_p,
        seed=job.id if job.seed is None else job.seed,
        chat_template=routed.chat_template,
        system_text=job.system_text,
        series=series_of(job, routed),
        submitted_by=job.submitted_by or None,
    )
