"""Every change of a job's status and of the registry leaves an event, whoever makes it, and events stay."""

from typing import Any

import psycopg
import pytest

from job_data import add_jobs, claim, ended, expire_leases, record_predictions
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from loracomp.records import Failure
from loracomp.worker.leases import release_jobs
from loracomp.worker.recorder import fail_jobs


def job_events(connection: Connection) -> list[tuple[Any, ...]]:
    rows = connection.execute(
        "SELECT old_status, new_status, attempt, worker, reason FROM loracomp.audit_event"
        " WHERE entity = 'job' ORDER BY id"
    )
    return [tuple(row.values()) for row in rows]


def registry_events(connection: Connection, entity: str) -> list[dict[str, Any]]:
    statement = "SELECT * FROM loracomp.audit_event WHERE entity = %s ORDER BY id"
    return connection.execute(statement, (entity,)).fetchall()


def test_a_jobs_attempts_are_told_by_its_events(connection: Connection):
    (job_id,) = add_jobs(connection, "a")
    release_jobs(connection, claim(connection, worker="w1"))
    fail_jobs(connection, claim(connection, worker="w2"), [Failure(job_id, "out_of_memory", "full", retry=True)])
    connection.execute("UPDATE loracomp.job SET run_at = now()")  # no status changes: no event
    claim(connection, worker="w3")
    expire_leases(connection)
    record_predictions(connection, claim(connection, worker="w4"), [ended(job_id)])
    assert job_events(connection) == [
        ("queued", "running", 1, "w1", None),
        ("running", "queued", 0, "w1", "released"),
        ("queued", "running", 1, "w2", None),
        ("running", "queued", 1, "w2", "out_of_memory"),
        ("queued", "running", 2, "w3", None),
        ("running", "queued", 1, "w3", "lease_expired"),
        ("queued", "running", 2, "w4", None),
        ("running", "succeeded", 2, "w4", None),
    ]


def test_an_administrators_acts_give_their_reason(connection: Connection):
    first, second = add_jobs(connection, *"ab")
    with connection.transaction():
        connection.execute("SELECT loracomp.cancel_job(%s, 'a slip of the pen')", (first,))
        connection.execute("SELECT loracomp.cancel_job(%s)", (second,))
        connection.execute("SELECT loracomp.retry_job(%s)", (first,))
    assert [(event[1], event[4]) for event in job_events(connection)] == [
        ("cancelled", "a slip of the pen"),
        ("cancelled", "cancelled"),
        ("queued", "retry_job"),
    ]


def test_an_operators_own_update_is_recorded_row_by_row_with_role_and_reason(connection: Connection):
    add_jobs(connection, *"abc")
    with connection.transaction():
        connection.execute("SET LOCAL loracomp.reason = 'moving house'")
        connection.execute("UPDATE loracomp.job SET status = 'cancelled', finished_at = now()")
    assert job_events(connection) == [("queued", "cancelled", 0, None, "moving house")] * 3
    actors = connection.execute("SELECT DISTINCT actor = session_user AS own FROM loracomp.audit_event").fetchall()
    assert {"own": True} in actors


def test_the_actor_is_who_the_session_acts_as(connection: Connection):
    if connection.execute("SELECT FROM pg_roles WHERE rolname = 'audit_ann'").fetchone() is None:
        connection.execute("CREATE ROLE audit_ann IN ROLE loracomp_submitter")
    connection.execute("SET ROLE audit_ann")
    row = connection.execute("SELECT loracomp.submit_job('a') AS id").fetchone()
    assert row
    connection.execute("SELECT loracomp.cancel_job(%(id)s)", row)
    connection.execute("RESET ROLE")
    events = registry_events(connection, "job")
    assert [(event["actor"], event["entity_id"]) for event in events] == [("audit_ann", row["id"])]


def test_a_rolled_back_change_leaves_no_event(connection: Connection):
    add_jobs(connection, "a")
    with connection.transaction(force_rollback=True):
        connection.execute("UPDATE loracomp.job SET status = 'cancelled', finished_at = now()")
    assert job_events(connection) == []


def test_a_job_deleted_by_hand_leaves_its_events_and_one_more(connection: Connection):
    (job_id,) = add_jobs(connection, "secret words")
    claim(connection)
    connection.execute("DELETE FROM loracomp.job")
    events = registry_events(connection, "job")
    assert [(event["action"], event["entity_id"]) for event in events] == [("update", job_id), ("delete", job_id)]
    assert "secret" not in str(events)


CHANGES = {
    "policy": (
        "INSERT INTO loracomp.policy (name) VALUES ('audited')",
        "UPDATE loracomp.policy SET k = 7 WHERE name = 'audited'",
        "DELETE FROM loracomp.policy WHERE name = 'audited'",
        ("k", 30, 7),
    ),
    "task": (
        "INSERT INTO loracomp.task (name) VALUES ('audited')",
        "UPDATE loracomp.task SET family = 'nli' WHERE name = 'audited'",
        "DELETE FROM loracomp.task WHERE name = 'audited'",
        ("family", "other", "nli"),
    ),
    "base_model": (
        "INSERT INTO loracomp.base_model (name, source, fingerprint, architecture, context_length, parameter_count,"
        " modules) VALUES ('audited', 's', repeat('b', 64), 'T', 9, 1, '{}')",
        "UPDATE loracomp.base_model SET context_length = 8 WHERE name = 'audited'",
        "DELETE FROM loracomp.base_model WHERE name = 'audited'",
        ("context_length", 9, 8),
    ),
    "encoder": (
        "INSERT INTO loracomp.encoder (name, source, fingerprint, identity, dimensions)"
        " VALUES ('audited', 's', 'f', 'f', 832)",
        "UPDATE loracomp.encoder SET revision = 'v2'",
        "DELETE FROM loracomp.encoder",
        ("revision", None, "v2"),
    ),
}


@pytest.mark.parametrize("entity", CHANGES)
def test_a_change_of_the_registry_is_kept_before_and_after(connection: Connection, entity: str):
    insert, update, delete, (column, old, new) = CHANGES[entity]
    connection.execute("DELETE FROM loracomp.policy WHERE name = 'audited'")
    for statement in (insert, update, update, delete):  # the second update changes nothing
        connection.execute(statement.encode())
    events = [event for event in registry_events(connection, entity) if event["entity_name"] == "audited"]
    assert [(event["action"], event["before"] and event["before"][column]) for event in events] == [
        ("insert", None),
        ("update", old),
        ("delete", new),
    ]
    assert [event["after"] and event["after"][column] for event in events] == [old, new, None]


def test_an_adapters_status_stands_in_its_events(connection: Connection):
    connection.execute("INSERT INTO loracomp.task (name) VALUES ('t')")
    connection.execute(
        "INSERT INTO loracomp.adapter (task_id, base_model_id, name, version, rank, alpha, use_rslora, scaling,"
        " target_modules, parameter_count, byte_count, sha256, digest, config)"
        " SELECT t.id, b.id, 't', 1, 8, 16, false, 2, '{q}', 1, 1, repeat('c', 64), repeat('d', 64), '{}'"
        " FROM loracomp.task AS t, loracomp.base_model AS b"
    )
    connection.execute("UPDATE loracomp.adapter SET status = 'active'")
    statuses = [(event["old_status"], event["new_status"]) for event in registry_events(connection, "adapter")]
    assert statuses == [(None, "staged"), ("staged", "active")]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE loracomp.audit_event SET actor = 'somebody'",
        "DELETE FROM loracomp.audit_event",
        "TRUNCATE loracomp.audit_event",
    ],
)
def test_events_are_only_appended_even_by_their_owner(connection: Connection, statement: str):
    add_jobs(connection, "a")
    claim(connection)
    before = registry_events(connection, "job")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="only appended"):
        connection.execute(statement.encode())
    assert registry_events(connection, "job") == before != []


def test_purging_keeps_the_registrys_events(connection: Connection):
    connection.execute("INSERT INTO loracomp.task (name) VALUES ('t')")
    add_jobs(connection, "a")
    connection.execute("UPDATE loracomp.job SET status = 'cancelled', finished_at = now() - interval '2 days'")
    connection.execute("SELECT loracomp.purge_jobs(interval '1 hour')")
    assert job_events(connection) == [(None, None, None, None, "purge_jobs")]
    assert [event["entity_name"] for event in registry_events(connection, "task")] == ["t"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM loracomp.audit_event")
