"""Code of a table's owner that a privileged session runs as that owner: in ANALYZE, REINDEX, REFRESH and the like."""

from collections.abc import Iterator

import pytest

from answers_data import as_alice, keep
from loracomp.database.connections import Connection
from people_fixtures import connect, login, value
from routing_data import add_base_model

# Each is what an administrator's rights would give alice.
CALLS = {
    "lists rows of others": "PERFORM FROM loracomp.list_answer_rows('public.bobs')",
    "reads a table of others": "PERFORM loracomp.try_prompts('public.bobs_table', '{subject}')",
    "reads answers of others": "PERFORM FROM loracomp.answers_since('public.bobs')",
    "erases": "PERFORM FROM loracomp.erase_jobs(ARRAY(SELECT generate_series(1, 50)::bigint))",
    "cancels": "PERFORM loracomp.cancel_jobs(ARRAY(SELECT generate_series(1, 50)::bigint))",
    "shows its role": "PERFORM loracomp.readable_tasks()",
}
# What an administrator, or autovacuum, does to a table or view of alice's.
MAINTENANCE = [
    "ANALYZE planted",
    "VACUUM ANALYZE planted",
    "REINDEX TABLE planted",
    "REINDEX TABLE CONCURRENTLY planted",
    "CLUSTER planted USING planted_index",
    "CREATE INDEX ON planted (planted_function(id))",
    "CREATE INDEX CONCURRENTLY ON planted (planted_function(id))",
    "REFRESH MATERIALIZED VIEW planted_view",
]
# Tells alice what happened; in a statement that is undone, the sequence stays.
PLANT = """
CREATE SEQUENCE reached;
CREATE SEQUENCE refused;
CREATE FUNCTION volatile_function(id int) RETURNS int LANGUAGE plpgsql AS $f$
BEGIN
    IF session_user <> current_user THEN
        BEGIN
            PERFORM public.planted_call();
            PERFORM nextval('public.reached');
        EXCEPTION WHEN OTHERS THEN
            PERFORM nextval('public.refused');
        END;
    END IF;
    RETURN id;
END
$f$;
CREATE FUNCTION planted_function(id int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $f$
BEGIN
    RETURN public.volatile_function(id);
END
$f$;
CREATE TABLE planted (id int);
INSERT INTO planted VALUES (1), (2);
CREATE INDEX planted_index ON planted (planted_function(id));
CREATE MATERIALIZED VIEW planted_view AS SELECT public.planted_function(id) AS id FROM planted
"""


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """Bob has a table and a declaration, and alice a table and a view that call volatile_function."""
    add_base_model(connection)
    with as_alice(database, "bob") as bob, as_alice(database) as opened:
        bob.execute("CREATE TABLE bobs_table (id int PRIMARY KEY, subject text)")
        bob.execute("INSERT INTO bobs_table VALUES (1, 'a secret')")
        bob.execute("SELECT loracomp.create_answers('bobs', 'bobs_table', '{subject}', choices => '{a,b}')")
        keep(connection)
        opened.execute("CREATE FUNCTION planted_call() RETURNS void LANGUAGE plpgsql AS 'BEGIN END'")
        for statement in PLANT.split(";\n\n"):
            opened.execute(statement.encode())
        yield opened


def plant(alice: Connection, call: str) -> None:
    alice.execute(
        f"CREATE OR REPLACE FUNCTION planted_call() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN {call}; END $f$".encode()
    )


def reached(alice: Connection) -> tuple[bool, bool]:
    """Whether a call went through, and whether one was refused."""
    return (
        bool(value(alice, "SELECT is_called FROM reached")),
        bool(value(alice, "SELECT is_called FROM refused")),
    )


@pytest.mark.parametrize("call", CALLS)
def test_a_tables_owner_gets_no_right_of_whoever_analyzes_it(
    connection: Connection, alice: Connection, call: str
) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute(f"DO $f$ BEGIN {CALLS[call]}; END $f$".encode())
    plant(alice, CALLS[call])
    connection.execute("ANALYZE planted")
    assert reached(alice) == (False, True)
    assert value(connection, "SELECT count(*) FROM loracomp.job WHERE status = 'queued'") == 1


@pytest.mark.parametrize("statement", MAINTENANCE)
def test_nor_of_whoever_maintains_it_otherwise(connection: Connection, alice: Connection, statement: str) -> None:
    plant(alice, CALLS["lists rows of others"])
    connection.execute(statement.encode())
    assert reached(alice) == (False, True)


def test_nor_of_an_administrator_who_maintains_it(alice: Connection, database: str) -> None:
    plant(alice, CALLS["lists rows of others"])
    alice.execute(f"GRANT MAINTAIN ON planted TO {login('adam')}".encode())
    with connect(database, "adam") as adam:
        adam.execute("ANALYZE planted")
    assert reached(alice) == (False, True)


def test_a_submitter_who_maintains_his_own_table_is_himself(alice: Connection) -> None:
    plant(alice, CALLS["lists rows of others"])
    alice.execute("ANALYZE planted")
    assert reached(alice) == (False, False), "he is himself, so nothing was tried"
    alice.execute("CREATE MATERIALIZED VIEW mine AS SELECT name FROM loracomp.readable_tasks()")


def test_what_a_tables_owner_submits_meanwhile_is_his_own_or_refused(connection: Connection, alice: Connection) -> None:
    for columns in ("(prompt) VALUES ('planted')", "(prompt, choices, expected) VALUES ('q', '{a,b}', 'a')"):
        plant(alice, f"INSERT INTO loracomp.job {columns}")
        connection.execute("ANALYZE planted")
        assert reached(alice) == (False, True)


def test_who_has_listened_keeps_no_memory_for_each_row(connection: Connection) -> None:
    connection.execute("LISTEN loracomp_test")
    connection.execute("UNLISTEN *")
    with connection.transaction():
        connection.execute("SELECT count(loracomp.caller()) FROM generate_series(1, 5000)")
        held = value(connection, "SELECT sum(total_bytes) FROM pg_backend_memory_contexts")
    assert held < 20e6
