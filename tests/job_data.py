"""What the job protocol's tests start from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from psycopg.conninfo import make_conninfo

from conftest import create_database, drop_database
from loracomp.database.connections import Connection
from loracomp.records import Job
from loracomp.steps.claim import claim_jobs

BASE = "tiny"
REPORT: dict[str, Any] = {
    "name": "w", "status": "idle", "host": "here", "pid": 7, "code_version": "1", "base_model": BASE,
    "device": "cpu/float32", "running_s": 0, "looked_s": None, "silent_after_s": 60,
    "claimed": 0, "succeeded": 0, "failed": 0, "released": 0, "dropped": 0,
}  # fmt: skip
"""What an idle worker that has just begun says of itself."""
_numbers = count()


@contextmanager
def shared_database(server: str, template: str) -> Iterator[str]:
    """A database for a module's tests, which clear it: a clone for each would cost a second."""
    name = f"{template}_jobs_{next(_numbers)}"
    yield pooled(create_database(server, name, template))
    drop_database(server, name)


def pooled(url: str) -> str:
    """The same database through the pooler that LORACOMP_TEST_POOLER names by its port, if it does."""
    port = os.environ.get("LORACOMP_TEST_POOLER")
    return make_conninfo(url, port=port) if port else url


def clear(connection: Connection) -> None:
    """Leave one base model, and nothing else; from then on a statement that waits for ever fails."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # the audit's triggers would refuse
        for table in ("job", "turn", "worker", "prediction", "audit_event", "adapter", "task", "base_model", "encoder"):
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
    """Insert a job for each prompt, with these other columns; their ids."""
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
    held: int = 0,
) -> tuple[Job, ...]:
    settings = {"worker": worker, "base_model": base_model, "batch_size": batch_size, "lease_s": lease_s, "held": held}
    return claim_jobs(connection, **settings)


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


def prediction(job_id: int, **columns: Any) -> dict[str, Any]:
    versions = {"base_model": BASE, "base_fingerprint": "a" * 64, "encoder": "none/1", "code_version": "0"}
    return {"job_id": job_id, "output": "yes", "policy": {"name": "default"}, **versions, **columns}
