"""Whoever declares answers, changes or drops them makes no statement of the application fail or wait long."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import errors

from answers_data import TICKETS, URGENCY, answer_all, as_alice, keep, shown, tidy
from job_data import wait_for_a_lock
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from people_fixtures import connect

LONGEST_S = 3
"""Within which a statement of the application returns: it waits two seconds at most."""
PARTED = """
CREATE TABLE notes (id integer PRIMARY KEY, body text, seen integer) PARTITION BY RANGE (id);
CREATE TABLE first_notes PARTITION OF notes FOR VALUES FROM (0) TO (100);
CREATE TABLE more_notes PARTITION OF notes FOR VALUES FROM (100) TO (200);
"""


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """She has two tickets, which are answered."""
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        opened.execute("INSERT INTO tickets VALUES (1, 'calm', 'urgent'), (2, 'calm', 'urgent')")
        opened.execute(URGENCY)
        answer_all(connection)
        yield opened
    tidy(connection)


@pytest.fixture
def application(database: str, alice: Connection) -> Iterator[Connection]:
    """Another session of hers."""
    with connect(database, "alice") as opened:
        opened.execute("SET statement_timeout = '20s'")
        yield opened


CREATE = "SELECT loracomp.create_answers('more', '{}', 'Is {{body}} urgent?', choices => '{{urgent,not urgent}}')"
LOADS = {
    "analyzed": ("tickets", "INSERT INTO tickets VALUES (3, 'calm', 'new')", "ANALYZE tickets"),
    "indexed": ("tickets", "INSERT INTO tickets VALUES (3, 'calm', 'new')", "CREATE INDEX ON tickets (body)"),
    "altered": ("notes", "INSERT INTO notes VALUES (3, 'new')", "ALTER TABLE first_notes ADD CHECK (id > 0)"),
    "of a partition": ("notes", "INSERT INTO more_notes VALUES (103, 'new')", "INSERT INTO notes VALUES (3, 'new')"),
}


@pytest.mark.parametrize("pause_s", [0.2, 1.2])
@pytest.mark.parametrize("load", LOADS)
def test_a_load_goes_on_while_its_table_is_declared(
    connection: Connection, alice: Connection, application: Connection, load: str, pause_s: float
) -> None:
    table, first, second = LOADS[load]
    alice.execute(PARTED)
    with ThreadPoolExecutor(1) as pool:
        with application.transaction():
            application.execute(first.encode())
            declared = pool.submit(alice.execute, CREATE.format(table).encode())
            wait_for_a_lock(connection)
            time.sleep(pause_s)
            application.execute(second.encode())
        declared.result(20)
    answer_all(connection)
    assert ("answered", "urgent?") in shown(alice, "more").values()


def test_writers_wait_two_seconds_at_most_while_a_table_is_declared(
    connection: Connection, alice: Connection, application: Connection, database: str
) -> None:
    with connect(database, "alice") as long, ThreadPoolExecutor(1) as pool, long.transaction():
        long.execute("INSERT INTO tickets VALUES (3, 'calm', 'new')")
        declared = pool.submit(alice.execute, CREATE.format("tickets").encode())
        wait_for_a_lock(connection)
        for number in range(4, 8):
            began = time.monotonic()
            application.execute("INSERT INTO tickets VALUES (%s, 'calm', 'new')", [number])
            assert time.monotonic() - began < LONGEST_S
        with pytest.raises(errors.LockNotAvailable, match="a transaction that is open has written to it"):
            declared.result(20)


LEFT_OPEN = {
    "a correction": ("SELECT loracomp.correct_row('urgency', '{1}', 'not urgent')", "corrected or drawn rows"),
    "a correction in the view": ("UPDATE urgency SET correct = 'not urgent' WHERE id = 1", "corrected or drawn rows"),
    "a draw": ("SELECT * FROM loracomp.rows_to_correct('urgency', 1)", "or has drawn rows"),
    "the table read": ("SELECT FROM tickets", "has read or written table"),
}
CHANGED = {
    "dropped": "SELECT loracomp.drop_answers('urgency')",
    "its key": "SELECT loracomp.alter_key('tickets', 'id', 'numeric')",
}


@pytest.mark.parametrize("left_open", LEFT_OPEN)
@pytest.mark.parametrize("change", CHANGED)
def test_no_statement_waits_for_who_drops_a_declaration_and_waits_for_others(
    connection: Connection, alice: Connection, application: Connection, database: str, change: str, left_open: str
) -> None:
    statement, reason = LEFT_OPEN[left_open]
    with connect(database, "alice") as other, ThreadPoolExecutor(1) as pool, other.transaction():
        other.execute(statement.encode())
        changed = pool.submit(alice.execute, CHANGED[change].encode())
        for number in range(3, 6):
            time.sleep(0.3)
            began = time.monotonic()
            application.execute("INSERT INTO tickets VALUES (%s, 'calm', 'new')", [number])
            application.execute("SELECT FROM tickets")
            assert time.monotonic() - began < LONGEST_S
        if (change, left_open) != ("its key", "a draw"):
            with pytest.raises(errors.LockNotAvailable, match=reason):
                changed.result(20)
    alice.execute(CHANGED[change].encode())
    if change == "dropped":
        triggers = "SELECT FROM pg_trigger WHERE tgrelid = 'public.tickets'::regclass AND tgname LIKE 'loracomp%'"
        assert connection.execute(triggers).fetchall() == []
        assert connection.execute("SELECT FROM loracomp.answer_hint").fetchall() == []
    else:
        answer_all(connection)
        assert {status for status, _ in shown(alice).values()} == {"answered"}


def test_hints_that_are_noted_while_a_declaration_is_dropped_go_with_it(
    connection: Connection, alice: Connection, application: Connection
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with application.transaction():
            application.execute("SELECT FROM tickets")
            dropped = pool.submit(alice.execute, CHANGED["dropped"].encode())
            wait_for_a_lock(connection)
            application.execute("INSERT INTO tickets VALUES (3, 'calm', 'new')")
        dropped.result(20)
    assert connection.execute("SELECT FROM loracomp.answer_hint").fetchall() == []


@pytest.mark.parametrize("change", ["alter_answers('more', again => true)", "cancel_answers('more')"])
def test_who_writes_to_a_new_partition_waits_for_no_change(
    connection: Connection, alice: Connection, application: Connection, database: str, change: str
) -> None:
    alice.execute(PARTED)
    alice.execute("INSERT INTO notes VALUES (1, 'new')")
    alice.execute(CREATE.format("notes").encode())
    keep(connection)
    alice.execute("CREATE TABLE late_notes PARTITION OF notes FOR VALUES FROM (200) TO (300)")
    with connect(database, "alice") as long, long.transaction():
        long.execute("INSERT INTO late_notes VALUES (201, 'new')")
        alice.execute("SET statement_timeout = '20s'")
        alice.execute(f"SELECT loracomp.{change}".encode())
        application.execute("INSERT INTO late_notes VALUES (202, 'new')")
    alice.execute("SELECT loracomp.alter_answers('more', paused => false)")
    answer_all(connection)
    application.execute("INSERT INTO late_notes VALUES (203, 'new')")
    answer_all(connection)
    assert {key: status for key, (status, _) in shown(alice, "more").items()} == dict.fromkeys(
        (1, 201, 202, 203), "answered"
    )
