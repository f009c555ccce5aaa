"""What the model is asked for a job, and what its answers measure."""

import math
from collections.abc import Sequence

from loracomp.records import Answer, Composition, Job, Measurement, MeasurementPlan, Request, Routed


def requests_of(job: Job, decided: Routed | MeasurementPlan) -> tuple[Request, ...]:
    """One request for a job of kind 'predict', none for 'route', and one for each of a plan's compositions."""
    if isinstance(decided, MeasurementPlan):
        return tuple(_to_measure(job, decided, composition) for composition in decided.compositions)
    return (_request(job, decided),) if job.kind == "predict" else ()


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
        chat_template=routed.chat_template,
        system_text=job.system_text,
    )


def _to_measure(job: Job, plan: MeasurementPlan, composition: Composition) -> Request:
    """The request that scores a job of kind 'measure' under one composition.

    It scores the job's choices. Without choices it scores the reference answer, whose log-likelihood is divided by its
    number of tokens.
    """
    choices, normalization = (job.choices, plan.normalization) if job.choices else ((plan.answer,), "tokens")
    return Request(
        job.prompt,
        choices,
        None,
        normalization=normalization,
        composition=composition,
        chat_template=plan.chat_template,
    )


def measurement(job: Job, plan: MeasurementPlan, answers: Sequence[Answer]) -> Measurement:
    """The measurement that follows from `answers`, which are in the order of `plan.compositions`."""
    (base_score, base_is_right), *adapters = [_measured(job.choices, plan.answer, each) for each in answers]
    return Measurement(
        job_id=job.id,
        normalization=plan.normalization,
        base_score=base_score,
        base_is_right=base_is_right,
        adapter_ids=plan.adapter_ids,
        gains=tuple(score - base_score for score, _ in adapters),
        are_right=tuple(is_right for _, is_right in adapters),
        chat_template=plan.chat_template,
    )


def _measured(choices: Sequence[str] | None, right: str, answer: Answer) -> tuple[float, bool | None]:
    """The log-probability of the right answer (among the choices, if there are any), and whether it was chosen."""
    assert answer.choice_scores is not None
    if choices is None:
        return answer.choice_scores[0], None
    highest = max(answer.choice_scores)
    total = highest + math.log(sum(math.exp(score - highest) for score in answer.choice_scores))
    return answer.choice_scores[choices.index(right)] - total, answer.output == right
