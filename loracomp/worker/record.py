"""The record step: writes predictions with their traces, measurements and failures of jobs whose lease is valid."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from types import MappingProxyType

import orjson
from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, composite, know_traces, storable
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
    made = composite(connection, "answer")
    tokens = {job.id: job.lease_token for job in jobs}
    (versions,) = {each.versions for each in predictions}
    answers = [
        made(
            job_id=each.job_id,
            lease_token=tokens[each.job_id],
            output=each.answer and storable(answer.output),
            choice_index=answer.choice_index,
            choice_scores=answer.choice_scores,
            choice_biases=answer.choice_biases,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            finish_reason=answer.finish_reason,
            norm_ratio=_finite(answer.norm_ratio),
            cosine=_finite(answer.cosine),
            composition_digest=each.composition_digest,
            batch_size=each.batch_size,
            timings=Jsonb({**each.timings, **timings}, dumps=orjson.dumps),
        )
        for each in predictions
        for answer in [each.answer or _NO_ANSWER]
    ]
    given = {"answers": answers, "traces": [each.trace for each in predictions], **asdict(versions)}
    return {row["id"] for row in connection.execute(QUERIES["record_predictions"], given)}


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
        )
        for each in measurements
    ]
    return {row["id"] for row in connection.execute(QUERIES["record_measurements"], {"results": results})}


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


def _finite(number: float | None) -> float | None:
    return None if number is None or not isfinite(number) else number


_NO_ANSWER = Answer(output="")
