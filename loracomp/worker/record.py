"""The record step: writes predictions with their traces, and failures, of jobs whose lease is valid."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import orjson
from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, composite, fields_of, know_traces, storable
from loracomp.database.queries import QUERIES
from loracomp.engine.measuring import Measurement, record_evidence, record_measurements
from loracomp.records import Answer, Failure, Job, Prediction, Versions

CODE, MESSAGE = 100, 10_000
"""Most characters of a failure that the database takes. A message may quote a text of any length."""


def record(connection: Connection, jobs: Sequence[Job], results: Sequence[Prediction | Measurement]) -> set[int]:
    """Write results and end their jobs, in one transaction; returns the ids of jobs whose lease was valid.

    Then, as it may take a second, what measurements say of tasks without an adapter.
    """
    predictions: dict[Versions, list[Prediction]] = {}
    for each in results:
        if isinstance(each, Prediction):
            predictions.setdefault(each.versions, []).append(each)
    writes = [partial(record_predictions, connection, jobs, part) for part in predictions.values()]
    if measurements := [each for each in results if isinstance(each, Measurement)]:
        writes.append(partial(record_measurements, connection, jobs, measurements))
    with connection.transaction() if len(writes) > 1 else nullcontext():
        ids = {id_ for write in writes for id_ in write()}
    if measurements:
        record_evidence(connection, ids)
    return ids


def record_predictions(connection: Connection, jobs: Sequence[Job], predictions: Sequence[Prediction]) -> set[int]:
    """Write predictions and end their jobs, in one transaction; returns the ids of jobs whose lease was still valid.

    All must have the same versions. Raises psycopg.DataError or IntegrityError, and writes nothing, if one of them
    can't be stored.
    """
    if not predictions:
        return set()
    know_traces(connection)
    made = composite(connection, "predicted")
    tokens = {job.id: job.lease_token for job in jobs}
    (versions,) = {each.versions for each in predictions}
    predicted = [
        made(
            job_id=each.job_id,
            lease_token=tokens[each.job_id],
            **fields_of(each.answer or _NO_ANSWER) | {"output": each.answer and storable(each.answer.output)},
            composition_digest=each.composition_digest,
            batch_size=each.batch_size,
            timings=Jsonb({step: round(ms, 3) for step, ms in each.timings.items()}, dumps=orjson.dumps),
        )
        for each in predictions
    ]
    given = {"predictions": predicted, "traces": [each.trace for each in predictions], **fields_of(versions)}
    return {row["id"] for row in connection.execute(QUERIES["record_predictions"], given)}


def fail_jobs(connection: Connection, jobs: Sequence[Job], failures: Sequence[Failure]) -> set[int]:
    """End jobs as failed, or queue them again if a retry may help; returns the ids of jobs whose lease was valid."""
    tokens = {job.id: job.lease_token for job in jobs}
    arguments = {
        "ids": [failure.job_id for failure in failures],
        "tokens": [tokens[failure.job_id] for failure in failures],
        "codes": [failure.code[:CODE] for failure in failures],
        "messages": [storable(failure.message)[:MESSAGE] for failure in failures],
        "retries": [failure.retry for failure in failures],
    }
    return {row["id"] for row in connection.execute(QUERIES["fail_jobs"], arguments)}


_NO_ANSWER = Answer(output="")
