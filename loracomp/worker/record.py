"""Record: write predictions with their traces, or failures, as far as the leases still hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, chain
from math import isfinite
from types import MappingProxyType

import orjson
from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, know_traces, storable
from loracomp.database.queries import QUERIES
from loracomp.records import Answer, Failure, Job, Prediction


def record_predictions(
    connection: Connection,
    jobs: Sequence[Job],
    predictions: Sequence[Prediction],
    timings: Mapping[str, float] = MappingProxyType({}),
) -> set[int]:
    """Write predictions and end their jobs, in one transaction; returns the ids of jobs whose lease was still valid.

    `timings` are the worker's own milliseconds, beside those of the predictions, all of which one process made. Raises
    psycopg.DataError or IntegrityError, and writes nothing, where one of them can't be stored.
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
        "choice_ends": list(accumulate(map(len, scores))),
        "prompt_tokens": [answer.prompt_tokens for answer in answers],
        "output_tokens": [answer.output_tokens for answer in answers],
        "norm_ratios": [_finite(answer.norm_ratio) for answer in answers],
        "cosines": [_finite(answer.cosine) for answer in answers],
        "composition_digests": [each.composition_digest for each in predictions],
        "batch_sizes": [each.batch_size for each in predictions],
        "timings": _timings(predictions, timings),
        **asdict(versions),
    }
    return {row["id"] for row in connection.execute(QUERIES["record_predictions"], given)}


def fail_jobs(connection: Connection, jobs: Sequence[Job], failures: Sequence[Failure]) -> set[int]:
    """End jobs as failed, or queue them for another attempt where that may help; ids of those whose lease held."""
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
    """One for each, or one for all where they are the same, which they are unless jobs had to be tried alone."""
    first = predictions[0].timings
    distinct = [first] if all(each.timings == first for each in predictions) else [each.timings for each in predictions]
    return [Jsonb({**each, **timings}, dumps=orjson.dumps) for each in distinct]


def _finite(number: float | None) -> float | None:
    return None if number is None or not isfinite(number) else number


_NO_ANSWER = Answer(output="")
