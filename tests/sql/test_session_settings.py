"""Settings of a role or of the database change neither what a worker answers nor what an installer makes."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress

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
    "default_transaction_isolation": "serializable", "extra_float_digits": "-15", "array_nulls": "off",
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
            "transaction_isolation": "read committed", "extra_float_digits": "1", "array_nulls": "on",
        }.items():  # fmt: skip
            assert session.execute("SELECT current_setting(%s) AS found", [name]).fetchone() == {"found": usual}


ODD_VALUES = """
SELECT s.name, v.value FROM pg_settings AS s CROSS JOIN LATERAL unnest(CASE s.vartype
    WHEN 'bool' THEN '{on,off}'::text[] WHEN 'enum' THEN s.enumvals
END) AS v (value)
WHERE s.context = 'user' AND v.value <> s.boot_val AND NOT starts_with(s.name, 'transaction_')
UNION ALL VALUES ('extra_float_digits', '-15'), ('extra_float_digits', '3'), ('DateStyle', 'German'),
    ('DateStyle', 'SQL, DMY'), ('TimeZone', 'Asia/Kathmandu'), ('client_encoding', 'LATIN1')
ORDER BY 1, 2
"""
"""Every setting that a role may have, with each of the values that it can be given apart from its default."""
READ = """
SELECT
    %(numbers)s::float8[] AS numbers, 0.123456789::float8 AS number, 0.12345679::float4 AS single,
    to_jsonb(0.123456789::float8) AS json, %(texts)s::text[] AS texts, %(text)s AS text, 'a\\b' AS backslash,
    decode('00ff', 'hex') AS bytes, '2026-12-01 12:34:56.789+00'::timestamptz AS time,
    interval '1 day 02:03:04' AS length, '{a,NULL}'::text[] AS written, 'pg_class'::regclass::text AS relation
"""


def test_no_setting_of_a_role_changes_what_a_session_reads(connection: Connection, database: str, worker: str):
    given = {"numbers": [1.25, None, 0.62345678901], "texts": ["ü", None, "NULL"], "text": "für 5 €"}
    name = sql.Identifier(psycopg.conninfo.conninfo_to_dict(worker)["user"])
    connection.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(name))

    def read() -> object:
        with db.connect(worker) as session:
            return session.execute(READ, given).fetchone()

    usual = read()
    for setting, value in [(row["name"], row["value"]) for row in connection.execute(ODD_VALUES)]:
        connection.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(name, sql.Identifier(setting), value))
        assert read() == usual, f"{setting} = {value}"
        connection.execute(sql.SQL("ALTER ROLE {} RESET {}").format(name, sql.Identifier(setting)))


VALUES = {
    '"char"': "x", "bigint": "-7", "bit": "1", "bit varying": "101", "boolean": "t", "character": "x",
    "character varying": "a b", "cid": "7", "cidr": "10.0.0.0/8", "inet": "::1", "int2vector": "1 2", "integer": "-7",
    "json": '{"a": 0.123456789}', "jsonb": '{"a": 0.123456789}', "jsonpath": "$.a ? (@ > 0.123456789)",
    "macaddr": "08:00:2b:01:02:03", "macaddr8": "08:00:2b:01:02:03:04:05", "name": "a b", "numeric": "0.123456789",
    "oid": "7", "oidvector": "1 2", "pg_lsn": "0/7", "pg_snapshot": "10:20:10,14", "refcursor": "a b", "smallint": "-7",
    "text": "a b", "tid": "(1,2)", "time with time zone": "12:34:56.789+05:45",
    "time without time zone": "12:34:56.789",
    "tsquery": "a & b", "tsvector": "'a':1 'b':2A", "txid_snapshot": "10:20:10,14",
    "uuid": "00000000-0000-0000-0000-000000000001", "xid": "7", "xid8": "7",
}  # fmt: skip
"""A value of each type of Postgres that a filter may compare as text, alone or in an array."""
TYPES = """
SELECT t.oid::regtype::text AS name, coalesce(e.oid, t.oid)::regtype::text AS element, e.oid IS NOT NULL AS is_array
FROM pg_type AS t LEFT JOIN pg_type AS e ON e.oid = t.typelem AND t.typoutput = 'array_out'::regproc
WHERE t.typtype = 'b' AND coalesce(e.typtype, 'b') = 'b' AND t.typnamespace = 'pg_catalog'::regnamespace
    -- bytea is refused otherwise, not every server has xml, and of the others no values can be written.
    AND coalesce(e.typname, t.typname) !~ '^(bytea|xml|gtsvector|pg_(brin|dependencies|mcv|ndistinct|node).*)$'
ORDER BY t.oid
"""
COMPARED_AS_TEXT = """
SELECT loracomp.check_filter_types('odd', f.filter)
FROM (SELECT jsonb_build_object(%s::text, 'x') AS filter) AS f, loracomp.filter_values('odd', f.filter) AS v
WHERE v.type IS NULL
"""


def test_no_setting_changes_a_text_that_a_filter_compares(connection: Connection):
    """Tried with every type of Postgres that a column may have."""
    types = connection.execute(TYPES).fetchall()
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(each["name"]), sql.SQL(each["name"])) for each in types
    )
    connection.execute(sql.SQL("CREATE TEMP TABLE odd ({})").format(columns))
    texts = list[sql.Composable]()
    for each in types:
        with suppress(psycopg.errors.WrongObjectType):
            if connection.execute(COMPARED_AS_TEXT, [each["name"]]).fetchall():
                one = sql.SQL("{}::{}").format(VALUES[each["element"]], sql.SQL(each["element"]))
                texts.append(sql.SQL("concat(ARRAY[{}])" if each["is_array"] else "concat({})").format(one))
    assert len(texts) > 50
    read = sql.SQL("SELECT ARRAY[{}] AS texts").format(sql.SQL(", ").join(texts))
    usual = connection.execute(read).fetchone()
    for setting, value in [(row["name"], row["value"]) for row in connection.execute(ODD_VALUES)]:
        connection.execute("SELECT set_config(%s, %s, false)", [setting, value])
        assert connection.execute(read).fetchone() == usual, f"{setting} = {value}"
        connection.execute(sql.SQL("RESET {}").format(sql.Identifier(setting)))


PATIENT = "-c statement_timeout=0 -c transaction_timeout=0"


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
        with psycopg.connect(make_conninfo(url, user=reader, options=PATIENT)) as session:
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
