"""Record: write predictions with their traces, or failures, as far as the leases still hold."""

from collections.abc import Mapping, Sequence

import orjson
from psycopg.types.json import Json

from loracomp.database.connections import Connection, storable
from loracomp.database.queries import QUERIES
from loracomp.records import Failure, Job


def record_predictions(
    connection: Connection, jobs: Sequence[Job], predictions: Sequence[Mapping[str, object]]
) -> set[int]:
    """Write predictions and end their jobs, in one transaction; ids of those whose lease held, the rest is dropped.

    A prediction holds job_id and columns of loracomp.prediction, its query_embedding as a pgvector.HalfVector. Raises
    psycopg.DataError or IntegrityError, and writes nothing, where one of them can't be stored.
    """
    tokens = {job.id: job.lease_token for job in jobs}
    rows = [{**row, "output": _output(row)} for row in predictions]
    embeddings = [row.pop("query_embedding", None) for row in rows]
    shared = _shared(rows)
    given = {
        "predictions": _json([{name: value for name, value in row.items() if name not in shared} for row in rows]),
        "shared": _json(shared),
        "tokens": [tokens[_job_id(row)] for row in rows],
        "embeddings": embeddings if any(embeddings) else None,
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


def _json(value: object) -> Json:
    # A dozen times as fast as json, with a millisecond a batch to win; JSON has no NaN or infinity: they become null.
    return Json(value, dumps=orjson.dumps)


def _shared(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """What all rows have in common, such as policy and timings: written and read once."""
    return {
        name: value
        for name, value in next(iter(rows), {}).items()
        if name != "job_id" and all(name in row and row[name] == value for row in rows)
    }


def _output(prediction: Mapping[str, object]) -> str | None:
    output = prediction.get("output")
    return storable(output) if isinstance(output, str) else None


def _job_id(prediction: Mapping[str, object]) -> int:
    job_id = prediction["job_id"]
    assert isinstance(job_id, int)
    return job_id
