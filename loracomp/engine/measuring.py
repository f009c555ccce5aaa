"""Jobs of kind 'measure': what the model is asked, what its answers say of adapters, how that is recorded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, composite, fields_of
from loracomp.database.queries import QUERIES
from loracomp.records import Composition, Job, Prediction, Request

KIND = "measure"


@dataclass(frozen=True, slots=True)
class MeasurementPlan:
    """What to score for one job of kind 'measure', as `plan_measurements` returns it."""

    job_id: int
    expected: str
    """The right answer."""
    choice_normalization: str
    """The same as `Request.normalization`."""
    adapter_ids: Sequence[int]
    adapter_sha256: Sequence[str]
    chat_template: bool = False
    """The same as `Request.chat_template`."""

    def requests(self, job: Job) -> tuple[Request, ...]:
        """What to ask the model: the job under the base model alone, then under each adapter alone with weight 1.

        Each choice is scored. For a job without choices, the right answer is scored by its log-likelihood per token.
        """
        choices, normalization = (
            (job.choices, self.choice_normalization) if job.choices else ((self.expected,), "tokens")
        )
        pairs = zip(self.adapter_ids, self.adapter_sha256, strict=True)
        alone = Composition(), *(Composition((id_,), (sha256,), (1.0,), "cat") for id_, sha256 in pairs)
        request = Request(job.prompt, choices, None, normalization=normalization, chat_template=self.chat_template)
        return tuple(replace(request, composition=composition) for composition in alone)

    def measurement(self, job: Job, predictions: Sequence[Prediction]) -> "Measurement":
        """What the predictions for `requests` measure."""
        (base_score, base_is_right), *adapters = [self._measured(job.choices, each) for each in predictions]
        scored = zip(self.adapter_ids, predictions[1:], strict=True)
        return Measurement(
            job_id=job.id,
            choice_normalization=self.choice_normalization,
            base_score=base_score,
            base_is_right=base_is_right,
            adapter_ids=self.adapter_ids,
            gains=tuple(score - base_score for score, _ in adapters),
            are_right=tuple(is_right for _, is_right in adapters),
            choice_scores={id_: each.choice_scores for id_, each in scored} if job.choices else None,
            chat_template=self.chat_template,
        )

    def _measured(self, choices: Sequence[str] | None, prediction: Prediction) -> tuple[float, bool | None]:
        """The log-probability of the right answer (among the choices, if there are any), and whether it was chosen."""
        scores = prediction.choice_scores
        assert scores is not None
        if choices is None:
            return scores[0], None
        highest = max(scores)
        total = highest + math.log(sum(math.exp(score - highest) for score in scores))
        return scores[choices.index(self.expected)] - total, prediction.output == self.expected


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of a job of kind 'measure': the fields of `loracomp.measured` without the lease token.

    A score is the log-probability of the right answer, in nats. With choices it is the log softmax over their
    normalised log-likelihoods; without, the text's log-likelihood per token.
    """

    job_id: int
    choice_normalization: str
    base_score: float
    base_is_right: bool | None
    """Whether the right choice scores highest under the base model; None without choices."""
    adapter_ids: Sequence[int]
    gains: tuple[float, ...]
    """For each adapter, the score under it alone minus `base_score`."""
    are_right: tuple[bool | None, ...]
    choice_scores: Mapping[int, tuple[float, ...] | None] | None = None
    """Normalised log-likelihoods of the choices under each adapter, by its id; None without choices."""
    chat_template: bool = False
    """Whether the prompt was in the chat template."""


def plan_measurements(connection: Connection, jobs: Sequence[Job]) -> list[MeasurementPlan]:
    """For each job of kind 'measure' its right answer and the adapters; a job that was purged meanwhile is left out."""
    if not (measured := [job.id for job in jobs if job.kind == KIND]):
        return []
    rows = connection.execute(QUERIES["plan_measurements"], {"job_ids": measured})
    return [MeasurementPlan(**row) for row in rows]


def record_measurements(connection: Connection, jobs: Sequence[Job], measurements: Sequence[Measurement]) -> set[int]:
    """Write the measurements of jobs whose lease is valid and end these jobs, in one transaction; returns their ids."""
    if not measurements:
        return set()
    made = composite(connection, "measured")
    tokens = {job.id: job.lease_token for job in jobs}
    results = []
    for each in measurements:
        scores = each.choice_scores and Jsonb(each.choice_scores)
        results.append(made(**fields_of(each) | {"lease_token": tokens[each.job_id], "choice_scores": scores}))
    return {row["id"] for row in connection.execute(QUERIES["record_measurements"], {"results": results})}
