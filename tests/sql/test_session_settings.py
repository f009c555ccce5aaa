"""Settings of a role or of the database change neither what a worker answers nor what an installer makes."""

import os
import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from conftest import create_database, drop_database
from job_data import add_base_model, add_jobs, statuses
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.connections import Connection
from worker_helpers import drain_here

HOSTILE = {
    "client_encoding": "LATIN1", "standard_conforming_strings": "off", "quote_all_identifiers": "on",
    "default_transaction_isolation": "serializable",
}  # fmt: skip


@pytest.fixture
def worker(connection: Connection, database: str) -> Iterator[str]:
    """URL of a worker's login whose role has odd settings."""
    name = f"odd_worker_{os.getpid()}"
    connection.execute(f"CREATE ROLE {name} LOGIN IN ROLE loracomp_worker".encode())
    for setting, odd in HOSTILE.items():
        connection.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(*map(sql.Identifier, (name, setting)), odd))
    yield make_conninfo(database, user=name)
    connection.execute(f"DROP ROLE {name}".encode())


def test_a_worker_whose_role_has_odd_settings_answers_every_text(connection: Connection, database: str, worker: str):
    add_base_model(connection)
    job_ids = add_jobs(connection, "für 5 €", "plain")
    drain_here(worker)
    assert statuses(connection) == dict.fromkeys(job_ids, "succeeded")
    row = connection.execute("SELECT output FROM loracomp.prediction WHERE job_id = %s", [job_ids[0]]).fetchone()
    assert row == {"output": "FÜR 5 €"}
    assert connection.execute("SELECT step, error FROM loracomp.keeper_step WHERE error IS NOT NULL").fetchall() == []


def test_the_sessions_of_commands_and_workers_have_the_usual_settings(worker: str):
    with db.connect(worker) as session:
        for name, usual in {
            "client_encoding": "UTF8", "standard_conforming_strings": "on", "quote_all_identifiers": "off",
            "transaction_isolation": "read committed",
        }.items():  # fmt: skip
            assert session.execute("SELECT current_setting(%s) AS found", [name]).fetchone() == {"found": usual}


def test_an_upgrade_keeps_grants_whatever_the_database_sets(server: str, template: str):
    name, reader = f"loracomp_odd_{os.getpid()}", f"reader_{os.getpid()}"
    url = create_database(server, name, template)
    try:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(f"CREATE ROLE {reader} LOGIN".encode())
            owner.execute(f"GRANT USAGE ON SCHEMA bi TO {reader}; GRANT SELECT ON bi.queue_health TO {reader}".encode())
            for setting, odd in {**HOSTILE, "transaction_timeout": "1s", "statement_timeout": "900ms"}.items():
                owner.execute(
                    sql.SQL("ALTER DATABASE {} SET {} = {}").format(*map(sql.Identifier, (name, setting)), odd)
                )
        assert schema.initialize(url, again=True)
        with psycopg.connect(make_conninfo(url, user=reader)) as session:
            assert session.execute("SELECT count(*) FROM bi.queue_health").fetchone() == (0,)
    finally:
        drop_database(server, name)
        with psycopg.connect(server, autocommit=True) as owner:
            owner.execute(f"DROP ROLE {reader}".encode())


def test_a_submitter_declares_no_table_of_ours_whatever_the_session_quotes(connection: Connection):
    connection.execute("SET quote_all_identifiers = on")
    with pytest.raises(psycopg.errors.WrongObjectType, match="is not an ordinary table"):
        connection.execute("SELECT loracomp.create_answers('mine', 'loracomp.task', '{name}', max_new_tokens => 4)")


def test_no_literal_in_a_body_means_something_else_without_standard_conforming_strings(connection: Connection):
    """Bodies are parsed in the session of whoever calls."""
    bodies = connection.execute(
        "SELECT p.oid::regprocedure::text AS name, p.prosrc AS body FROM pg_proc AS p"
        " JOIN pg_namespace AS n ON n.oid = p.pronamespace"
        " WHERE n.nspname IN ('loracomp', 'loracomp_parts', 'bi') AND p.prosqlbody IS NULL"
    ).fetchall()
    assert len(bodies) > 100
    escaped = re.compile(r"\bE'(?:[^'\\]|\\.|'')*'")
    assert [each["name"] for each in bodies if "\\" in escaped.sub("", each["body"])] == []
