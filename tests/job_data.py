"""Fixtures and helpers for tests of the job protocol."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import count
from typing import Any, cast

from pgvector import HalfVector
from psycopg.conninfo import make_conninfo

from loracomp.database.connections import Connection, row_of
from loracomp.database.queries import QUERIES
from loracomp.engine.inflight import InFlight
from loracomp.records import Composition, Job, Prediction, Routed, Trace, Versions
from loracomp.worker import recorder
from loracomp.worker.leases import claim_jobs

BASE = "tiny"
REPORT: dict[str, Any] = {
    "name": "w", "status": "idle", "host": "here", "pid": 7, "code_version": "1", "base_model": BASE,
    "device": "cpu/float32", "running_s": 0, "looked_s": None, "silent_after_s": 60,
    "claimed": 0, "succeeded": 0, "failed": 0, "released": 0, "dropped": 0,
}  # fmt: skip
"""The report of an idle worker that has just started."""
CLEARED = (
    "job ended_job worker keeper prediction audit_event measurement example_embedding example adapter task base_model"
    " encoder"
)
_numbers = count()


@contextmanager
def shared_database(server: str, template: str) -> Iterator[str]:
    """Make one database for all tests of a module, which clear it, because a clone for each test would take a
    second."""
    # Imported here, because worker processes import this module too.
    from conftest import create_database, drop_database

    name = f"{template}_jobs_{next(_numbers)}"
    yield pooled(create_database(server, name, template))
    drop_database(server, name)


def pooled(url: str) -> str:
    """Return the URL of the same database through the pooler on port LORACOMP_TEST_POOLER, or the same URL if it is not
    set."""
    port = os.environ.get("LORACOMP_TEST_POOLER")
    return make_conninfo(url, port=port) if port else url


INDEXES = ("job_queue", "job_leases", "job_waiting")
SIZES = "SELECT max(pg_relation_size(('loracomp.' || i)::regclass)) AS bytes FROM unnest(%s::text[]) AS i"


def clear(connection: Connection) -> None:
    """Delete everything except one base model; from then on a statement that waits for ever fails."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # the audit's triggers would refuse
        # Deleted jobs leave dead index entries, which the next test's claims would read.
        (sizes,) = connection.execute(SIZES, (list(INDEXES),))
        if sizes["bytes"] > 5 * 8192:
            connection.execute("TRUNCATE loracomp.job")
        for table in CLEARED.split():
            connection.execute(f"DELETE FROM loracomp.{table}".encode())
    add_base_model(connection)
    connection.execute("SET statement_timeout = '20s'")


def add_base_model(connection: Connection, name: str = BASE, *, default: bool = True) -> None:
    connection.execute(
        "INSERT INTO loracomp.base_model"
        " (name, source, fingerprint, architecture, context_length, parameter_count, modules, is_default)"
        " VALUES (%s, 'nowhere', repeat('a', 64), 'Tiny', 128, 1, '{}', %s)",
        (name, default),
    )


def add_jobs(connection: Connection, *prompts: str, **columns: Any) -> list[int]:
    """Insert a job for each prompt, with these other columns; returns their ids."""
    names = ["prompt", *columns]
    statement = f"INSERT INTO loracomp.job ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))}) RETURNING id"
    return [
        row["id"] for prompt in prompts for row in connection.execute(statement.encode(), [prompt, *columns.values()])
    ]


def claim(
    connection: Connection,
    batch_size: int = 16,
    *,
    worker: str = "w",
    base_model: str = BASE,
    lease_s: float = 60,
    held: Sequence[Job] = (),
    from_start: bool = True,
) -> tuple[Job, ...]:
    """Claim jobs right after the keeper has done its work."""
    keep(connection)
    return claim_jobs(
        connection,
        worker=worker,
        base_model=base_model,
        batch_size=batch_size,
        lease_s=lease_s,
        held=held,
        from_start=from_start,
    )


KEEPER = ("rescue_jobs", "wake_jobs", "take_answers", "measure_corrections", "ask_rows")
"""The keeper's steps, which a worker calls every second."""


def keep(connection: Connection) -> None:
    """Call each step of the keeper once."""
    for step in KEEPER:
        row_of(connection, QUERIES[step])


def expire_leases(connection: Connection) -> None:
    connection.execute(
        "UPDATE loracomp.job SET lease_expires_at = now() - interval '1 second' WHERE status = 'running'"
    )


def job(connection: Connection, job_id: int) -> dict[str, Any]:
    row = connection.execute("SELECT * FROM loracomp.job WHERE id = %s", (job_id,)).fetchone()
    assert row is not None
    return row


def statuses(connection: Connection) -> dict[int, str]:
    return {row["id"]: row["status"] for row in connection.execute("SELECT id, status FROM loracomp.job ORDER BY id")}


def prediction_row(job_id: int, **columns: Any) -> dict[str, Any]:
    """Return columns of loracomp.prediction for a job; the columns of its trace are empty unless given."""
    versions = {"base_model": BASE, "base_fingerprint": "a" * 64, "encoder": "none/1", "code_version": "0"}
    empty: dict[str, Any] = {name: [] for name in TRACE if name not in _NO_ARRAYS}
    run = {"prompt_tokens": 0, "output_tokens": 0, "timings": {}, "batch_size": 1, "device": None}
    return {
        "job_id": job_id,
        "output": "yes",
        **empty,
        "policy_settings": {"name": "default"},
        **run,
        **versions,
        **columns,
    }


def end(flight: InFlight, **columns: Any) -> InFlight:
    """End a job as an engine does, with these columns of loracomp.prediction."""
    given = prediction_row(flight.job.id, timings=flight.timings, batch_size=flight.batch_size)
    given |= columns
    flight.decision = Routed(flight.job.id, Composition(), "none", False, (), trace(given))
    predicted = {each.name: given[each.name] for each in fields(Prediction) if each.name in given}
    flight.result = flight.decision if given["output"] is None else Prediction(**predicted)
    flight.composition_digest, flight.batch_size = given.get("composition_digest"), given["batch_size"]
    flight.timings = given["timings"]
    flight.versions = Versions(**{each.name: given[each.name] for each in fields(Versions)})
    return flight


def ended(job_id: int, **columns: Any) -> InFlight:
    """Return a job that has ended with these columns of loracomp.prediction; `record_predictions` gives it its
    lease."""
    return end(InFlight(Job(job_id, 0, "predict", "", None, None)), **columns)


def record_predictions(connection: Connection, jobs: Sequence[Job], flights: Sequence[InFlight]) -> set[int]:
    """Record how jobs have ended, with the leases of these claimed jobs; returns the ids of the recorded jobs."""
    leased = {job.id: job for job in jobs}
    return recorder.record_predictions(connection, [replace(each, job=leased[each.job.id]) for each in flights])


TRACE = (
    "example_ids", "example_tasks", "similarities", "tasks", "probabilities", "weights",
    "composed_tasks", "adapter_ids", "adapter_sha256", "adapter_weights", "policy_settings", "fallback",
    "searched_task_count", "expected_gains", "chat_template", "calibration_examples",
)  # fmt: skip
"""Columns of loracomp.route_trace, in their order."""
_NO_ARRAYS = (
    "policy_settings", "fallback", "searched_task_count", "expected_gains", "chat_template",
    "calibration_examples",
)  # fmt: skip


def trace(columns: Mapping[str, Any]) -> Trace:
    """Return the trace that `route_jobs` would have returned with these values, as text that the server parses."""
    written = [_written(columns.get(name)) for name in TRACE]
    return cast("Trace", "({})".format(",".join("" if each is None else _quoted(each) for each in written)))


def _written(value: Any) -> str | None:
    match value:
        case None | str():
            return value
        case list() | tuple():
            return "{{{}}}".format(",".join("NULL" if each is None else _element(each) for each in value))
        case dict():
            return json.dumps(value)
        case HalfVector():
            return value.to_text()
    return str(value)


def _element(value: Any) -> str:
    written = _written(value)
    assert written is not None
    return written if isinstance(value, list | tuple) else _quoted(written)


def _quoted(text: str) -> str:
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))


def record(connection: Connection, tokens: Mapping[int, int], rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Record these columns of loracomp.prediction with the tokens of these leases; returns the ids of the recorded
    jobs."""
    jobs = [Job(id_, token, "predict", "", None, None) for id_, token in tokens.items()]
    return record_predictions(connection, jobs, [ended(**each) for each in rows])


RECORD_ROW = """
SELECT loracomp.record_predictions(
    predictions => ARRAY[
        jsonb_populate_record(NULL::loracomp.predicted, %(row)s || jsonb_build_object('lease_token', %(token)s::bigint))
    ],
    traces => ARRAY[jsonb_populate_record(NULL::loracomp.route_trace, %(row)s)], device => p.device,
    base_model => p.base_model, base_fingerprint => p.base_fingerprint, encoder => p.encoder,
    code_version => p.code_version
) AS id
FROM jsonb_populate_record(NULL::loracomp.prediction, %(row)s) AS p
"""
"""A call with any JSON in the columns, as the server reads it: a faulty or forging worker may send it."""


def wait_for_a_lock(connection: Connection) -> None:
    """Wait until another session of this database waits for a lock, or sleeps before it tries again."""
    waiting = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database()"
        " AND (wait_event_type = 'Lock' OR wait_event = 'PgSleep')"
    )
    for _ in range(1000):
        connection.execute("SELECT pg_stat_clear_snapshot()")
        if connection.execute(waiting).fetchone() is not None:
            return
        time.sleep(0.02)
    raise AssertionError("nobody waits")
