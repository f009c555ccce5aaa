"""The record step: writes predictions with their traces, measurements and failures of jobs whose lease is valid."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, chain
from math import isfinite
from types import MappingProxyType

import orjson
from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, know_traces, storable
from loracomp.database.queries import QUERIES
from loracomp.records import Answer, Failure, Job, Measurement, Prediction


def record(
    connection: Connection,
    jobs: Sequence[Job],
    results: Sequence[Prediction | Measurement],
    timings: Mapping[str, float] = MappingProxyType({}),
) -> set[int]:
    """Write a batch's results and end its jobs, in one transaction; returns the ids of jobs whose lease was valid."""
    predictions = [each for each in results if isinstance(each, Prediction)]
    measurements = [each for each in results if isinstance(each, Measurement)]
    if not measurements:
        return record_predictions(connection, jobs, predictions, timings)
    if not predictions:
        return record_measurements(connection, jobs, measurements)
    with connection.transaction():
        recorded = record_predictions(connection, jobs, predictions, timings)
        return recorded | record_measurements(connection, jobs, measurements)


def record_predictions(
    connection: Connection,
    jobs: Sequence[Job],
    predictions: Sequence[Prediction],
    timings: Mapping[str, float] = MappingProxyType({}),
) -> set[int]:
    """Write predictions and end their jobs, in one transaction; returns the ids of jobs whose lease was still valid.

    `timings` are the milliseconds of the worker's own steps, which are added to those of each prediction. All
    predictions must come from one process. Raises psycopg.DataError or IntegrityError, and writes nothing, if one of
    them can't be stored.
    """
    if not predictions:
        return set()
    know_traces(connection)
    tokens = {job.id: job.lease_token for job in jobs}
    (versions,) = {each.versions for each in predictions}
    answers = [each.answer or _NO_ANSWER for each in predictions]
    scores = [answer.choice_scores or () for answer in answers]
    given = {
        "ids": [each.job_id for each in predictions],
        "tokens": [tokens[each.job_id] for each in predictions],
        "traces": [each.trace for each in predictions],
        "outputs": [each.answer and storable(each.answer.output) for each in predictions],
        "choice_indexes": [answer.choice_index for answer in answers],
        "choice_scores": list(chain.from_iterable(scores)),
        # One for each score, so that choice_ends holds for both.
        "choice_biases": [
            bias
            for answer, each in zip(answers, scores, strict=True)
            for bias in answer.choice_biases or (None,) * len(each)
        ],
        "choice_ends": list(accumulate(map(len, scores))),
        "prompt_tokens": [answer.prompt_tokens for answer in answers],
        "output_tokens": [answer.output_tokens for answer in answers],
        "norm_ratios": [_finite(answer.norm_ratio) for answer in answers],
        "cosines": [_finite(answer.cosine) for answer in answers],
        "composition_digests": [each.composition_digest for each in predictions],
        "batch_sizes": [each.batch_size for each in predictions],
        "timings": _timings(predictions, timings),
        "finish_reasons": [answer.finish_reason for answer in answers],
        **asdict(versions),
    }
    return {row["id"] for row in connection.execute(QUERIES["record_predictions"], given)}


def record_measurements(connection: Connection, jobs: Sequence[Job], measurements: Sequence[Measurement]) -> set[int]:
    """Write the measurements of jobs whose lease is valid and end these jobs, in one transaction; returns their ids."""
    tokens = {job.id: job.lease_token for job in jobs}
    given = {
        "ids": [each.job_id for each in measurements],
        "tokens": [tokens[each.job_id] for each in measurements],
        "choice_normalizations": [each.normalization for each in measurements],
        "base_scores": [each.base_score for each in measurements],
        "bases_are_right": [each.base_is_right for each in measurements],
        "chat_templates": [each.chat_template for each in measurements],
        "ends": list(accumulate(len(each.adapter_ids) for each in measurements)),
        "adapter_ids": list(chain.from_iterable(each.adapter_ids for each in measurements)),
        "gains": list(chain.from_iterable(each.gains for each in measurements)),
        "are_right": list(chain.from_iterable(each.are_right for each in measurements)),
    }
    return {row["id"] for row in connection.execute(QUERIES["record_measurements"], given)}


def fail_jobs(connection: Connection, jobs: Sequence[Job], failures: Sequence[Failure]) -> set[int]:
    """End jobs as failed, or queue them again if a retry may help; returns the ids of jobs whose lease was valid."""
    tokens = {job.id: job.lease_token for job in jobs}
    arguments = {
        "ids": [failure.job_id for failure in failures],
        "tokens": [tokens[failure.job_id] for failure in failures],
        "codes": [failure.code for failure in failures],
        "messages": [storable(failure.message) for failure in failures],
        "retries": [failure.retry for failure in failures],
    }
    return {row["id"] for row in connection.execute(QUERIES["fail_jobs"], arguments)}


def _timings(predictions: Sequence[Prediction], timings: Mapping[str, float]) -> list[Jsonb]:
    """The timings of each prediction, or a single element if all are equal; they differ if jobs were tried alone."""
    first = predictions[0].timings
    distinct = [first] if all(each.timings == first for each in predictions) else [each.timings for each in predictions]
    return [Jsonb({**each, **timings}, dumps=orjson.dumps) for each in distinct]


def _finite(number: float | None) -> float | None:
    return None if number is None or not isfinite(number) else number


_NO_ANSWER = Answer(output="")
