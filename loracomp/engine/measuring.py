"""Jobs of kind 'measure': what the model is asked for one, what its answers say of adapters, how that is recorded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, composite
from loracomp.database.queries import QUERIES
from loracomp.records import Answer, Composition, Job, Request

KIND = "measure"


@dataclass(frozen=True, slots=True)
class MeasurementPlan:
    """What to score for one job of kind 'measure', as `plan_measurements` returns it."""

    job_id: int
    answer: str
    """The right answer."""
    normalization: str
    """As in `Request`."""
    adapter_ids: tuple[int, ...]
    adapter_sha256: tuple[str, ...]
    chat_template: bool = False
    """As in `Request`."""

    def requests(self, job: Job) -> tuple[Request, ...]:
        """What to ask the model: the job under the base model alone, then under each adapter alone with weight 1.

        The choices are scored. Without choices it is the right answer, whose log-likelihood is divided by its number
        of tokens.
        """
        choices, normalization = (job.choices, self.normalization) if job.choices else ((self.answer,), "tokens")
        pairs = zip(self.adapter_ids, self.adapter_sha256, strict=True)
        alone = Composition(), *(Composition((id_,), (sha256,), (1.0,), "cat") for id_, sha256 in pairs)
        asked = Request(job.prompt, choices, None, normalization=normalization, chat_template=self.chat_template)
        return tuple(replace(asked, composition=composition) for composition in alone)

    def measurement(self, job: Job, answers: Sequence[Answer]) -> "Measurement":
        """What the answers to `requests` measure."""
        (base_score, base_is_right), *adapters = [self._measured(job.choices, each) for each in answers]
        return Measurement(
            job_id=job.id,
            normalization=self.normalization,
            base_score=base_score,
            base_is_right=base_is_right,
            adapter_ids=self.adapter_ids,
            gains=tuple(score - base_score for score, _ in adapters),
            are_right=tuple(is_right for _, is_right in adapters),
            choice_scores=tuple(each.choice_scores or () for each in answers[1:]) if job.choices else None,
            chat_template=self.chat_template,
        )

    def _measured(self, choices: Sequence[str] | None, answer: Answer) -> tuple[float, bool | None]:
        """The log-probability of the right answer (among the choices, if there are any), and whether it was chosen."""
        assert answer.choice_scores is not None
        if choices is None:
            return answer.choice_scores[0], None
        highest = max(answer.choice_scores)
        total = highest + math.log(sum(math.exp(score - highest) for score in answer.choice_scores))
        return answer.choice_scores[choices.index(self.answer)] - total, answer.output == self.answer


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of a job of kind 'measure'. A score is the log-probability of the right answer, in nats.

    With choices it is the log softmax over their normalised log-likelihoods; without, the text's log-likelihood per
    token.
    """

    job_id: int
    normalization: str
    base_score: float
    base_is_right: bool | None
    """Whether the right choice scores highest under the base model; None without choices."""
    adapter_ids: tuple[int, ...]
    gains: tuple[float, ...]
    """For each adapter, the score under it alone minus `base_score`."""
    are_right: tuple[bool | None, ...]
    choice_scores: tuple[tuple[float, ...], ...] | None = None
    """Normalised log-likelihoods of the choices under each adapter."""
    chat_template: bool = False
    """Whether the prompt was in the chat template."""


def plan_measurements(connection: Connection, jobs: Sequence[Job]) -> list[MeasurementPlan]:
    """For each job of kind 'measure' its right answer and the adapters; a job that was purged meanwhile is left out."""
    if not (measured := [job.id for job in jobs if job.kind == KIND]):
        return []
    return [
        MeasurementPlan(
            job_id=row["job_id"],
            answer=row["answer"],
            normalization=row["choice_normalization"],
            adapter_ids=tuple(row["adapter_ids"]),
            adapter_sha256=tuple(row["adapter_sha256"]),
            chat_template=row["chat_template"],
        )
        for row in connection.execute(QUERIES["plan_measurements"], {"job_ids": measured})
    ]


def record_measurements(connection: Connection, jobs: Sequence[Job], measurements: Sequence[Measurement]) -> set[int]:
    """Write the measurements of jobs whose lease is valid and end these jobs, in one transaction; returns their ids."""
    made = composite(connection, "measured")
    tokens = {job.id: job.lease_token for job in jobs}
    results = [
        made(
            job_id=each.job_id,
            lease_token=tokens[each.job_id],
            choice_normalization=each.normalization,
            base_score=each.base_score,
            base_is_right=each.base_is_right,
            chat_template=each.chat_template,
            adapter_ids=each.adapter_ids,
            gains=each.gains,
            are_right=each.are_right,
            choice_scores=each.choice_scores and Jsonb(dict(zip(each.adapter_ids, each.choice_scores, strict=True))),
        )
        for each in measurements
    ]
    return {row["id"] for row in connection.execute(QUERIES["record_measurements"], {"results": results})}
