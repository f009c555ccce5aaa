"""Two transactions about the same declaration that overlap: what one of them can't see isn't lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import errors

from answers_data import TICKETS, URGENCY, answer_all, as_alice, keep, shown, tidy
from job_data import wait_for_a_lock
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from people_fixtures import connect, login, value


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


OLDER = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
ALTERED = {
    "prompt": ("prompt => 'Seen {seen}'", {1: ("answered", "7"), 2: ("answered", "0")}),
    "filter": ("""filter => '{"seen": 7}'""", {1: ("answered", "urgent")}),
}


@pytest.mark.parametrize("isolation", OLDER)
@pytest.mark.parametrize("what", ALTERED)
@pytest.mark.parametrize("writes_first", [True, False], ids=["written before", "written after"])
def test_a_column_that_alter_answers_adds_is_noticed_in_transactions_that_are_open(
    connection: Connection, alice: Connection, database: str, isolation: str, what: str, writes_first: bool
) -> None:
    change, shown_then = ALTERED[what]
    write = "UPDATE tickets SET seen = 7 WHERE id = 1"
    with connect(database, "alice") as older, older.transaction():
        older.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
        older.execute("SELECT FROM loracomp.policy")
        if writes_first:
            older.execute(write)
        alice.execute(f"SELECT loracomp.alter_answers('urgency', {change})".encode())
        answer_all(connection)
        state = value(alice, "SELECT state FROM loracomp.list_answers()")
        assert state.startswith("waiting for open transactions that have written" if writes_first else "ready")
        if writes_first:
            assert {status for status, _ in shown(alice).values()} <= {"stale"}
        else:
            older.execute(write)
    answer_all(connection)
    assert shown(alice) == shown_then
    assert value(alice, "SELECT state FROM loracomp.list_answers()") == "ready"


@pytest.mark.parametrize("what", ALTERED)
def test_a_column_that_alter_answers_adds_is_noticed_in_a_transaction_that_began_meanwhile(
    connection: Connection, alice: Connection, database: str, what: str
) -> None:
    change, shown_then = ALTERED[what]
    with connect(database, "alice") as later, later.transaction():
        with alice.transaction():
            alice.execute(f"SELECT loracomp.alter_answers('urgency', {change})".encode())
            later.execute("UPDATE tickets SET seen = 7 WHERE id = 1")
        answer_all(connection)
    answer_all(connection)
    assert shown(alice) == shown_then


def test_a_row_that_an_open_transaction_has_changed_is_not_answered_as_it_was(
    connection: Connection, alice: Connection, database: str
) -> None:
    """The row's hint is older than the prompt with another column, of which the open change has made none. A later
    writer's row doesn't wait, and nor does another declaration."""
    alice.execute(URGENCY.replace("'urgency'", "'other'"))
    answer_all(connection)
    with connect(database, "alice") as older, connect(database, "alice") as begun:
        begun.execute("BEGIN; INSERT INTO tickets VALUES (3, 'calm', 'urgent', 3)")
        alice.execute("UPDATE tickets SET body = 'not urgent' WHERE id = 1")
        with older.transaction():
            older.execute("UPDATE tickets SET seen = 7 WHERE id = 1")
            alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'Seen {seen}')")
            answer_all(connection)
            begun.execute("COMMIT")
            alice.execute("INSERT INTO tickets VALUES (4, 'calm', 'urgent', 4)")
            answer_all(connection)
            waiting = {1: ("stale", "urgent"), 2: ("stale", "urgent"), 3: ("waiting", None), 4: ("answered", "4")}
            assert shown(alice) == waiting
            assert {status for status, _ in shown(alice, "other").values()} == {"answered"}
            assert value(connection, "SELECT loracomp.rows_wait()"), "a worker that drains goes on"
        assert shown(alice) == waiting
    answer_all(connection)
    assert shown(alice) == {1: ("answered", "7"), 2: ("answered", "0"), 3: ("answered", "3"), 4: ("answered", "4")}


def test_a_scan_waits_for_a_writer_whose_id_is_later_than_the_keepers(
    connection: Connection, alice: Connection, database: str
) -> None:
    """The keeper's transaction gets its id with the first declaration that it locks; another may be altered since."""
    with connect(database, "alice") as writer:
        with connection.transaction():
            connection.execute("SELECT pg_current_xact_id()")
            writer.execute("BEGIN; UPDATE tickets SET seen = 7 WHERE id = 1")
            alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'Seen {seen}')")
            connection.execute("SELECT loracomp.ask_rows()")
        answer_all(connection)
        assert shown(alice) == {1: ("stale", "urgent"), 2: ("stale", "urgent")}
        writer.execute("COMMIT")
    answer_all(connection)
    assert shown(alice) == {1: ("answered", "7"), 2: ("answered", "0")}


def test_a_scan_waits_for_no_later_writer_and_no_other_table(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY)")
    with connect(database, "alice") as older, connect(database, "alice") as later:
        older.execute("BEGIN; INSERT INTO notes VALUES (1); SELECT FROM tickets")
        alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'Seen {seen}')")
        connection.execute("UPDATE loracomp.declaration SET scan_after = pg_current_xact_id()::text::bigint")
        later.execute("BEGIN; INSERT INTO tickets VALUES (3, 'calm', 'urgent', 3)")
        assert answer_all(connection) == ["Seen 0"] * 2


def test_before_counts_no_answer_of_an_open_correction_to_other_descriptions(
    connection: Connection, alice: Connection, database: str
) -> None:
    with connect(database, "alice") as other, ThreadPoolExecutor(1) as pool:
        with other.transaction():
            other.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 1")
            altered = pool.submit(
                alice.execute, "SELECT loracomp.alter_answers('urgency', descriptions => '{now,later}')"
            )
            wait_for_a_lock(connection)
        altered.result(60)
    answer_all(connection, "not urgent")
    assert value(alice, "SELECT before FROM loracomp.list_answers()") == "1 of 1 picked rows right"


@pytest.mark.parametrize("isolation", OLDER)
def test_a_transaction_that_is_older_than_the_declaration_is_noticed(
    connection: Connection, alice: Connection, database: str, isolation: str
) -> None:
    with connect(database, "alice") as older, older.transaction():
        older.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
        older.execute("SELECT FROM loracomp.policy")
        alice.execute("SELECT loracomp.create_answers('says', 'tickets', '{body}')")
        answer_all(connection)
        older.execute("INSERT INTO tickets VALUES (3, 'calm', 'late')")
        older.execute("UPDATE tickets SET body = 'early' WHERE id = 1")
    answer_all(connection)
    assert shown(alice, "says") == {1: ("answered", "early"), 2: ("answered", "urgent"), 3: ("answered", "late")}


@pytest.mark.parametrize("change", ["prompt => 'Of {body}'", "choices => '{urgent,not urgent,so so}'"])
def test_a_correction_that_is_open_is_kept_for_another_prompt(
    connection: Connection, alice: Connection, database: str, change: str
) -> None:
    alice.execute(f"GRANT SELECT, UPDATE ON urgency TO {login('bob')}".encode())
    alice.execute(f"GRANT SELECT ON tickets TO {login('bob')}".encode())
    with connect(database, "bob") as bob, ThreadPoolExecutor(1) as pool:
        with bob.transaction():
            bob.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 2")
            altered = pool.submit(alice.execute, f"SELECT loracomp.alter_answers('urgency', {change})".encode())
            wait_for_a_lock(connection)
            connection.execute("SET statement_timeout = '20s'")
            keep(connection)
        altered.result(60)
    answer_all(connection)
    assert alice.execute("SELECT id, correct FROM urgency ORDER BY id").fetchall() == [
        {"id": 1, "correct": None}, {"id": 2, "correct": "not urgent"},
    ]  # fmt: skip


def test_another_prompt_is_refused_where_corrections_may_be_overlooked(
    connection: Connection, alice: Connection, database: str
) -> None:
    answer_all(connection)
    alice.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM tickets")
    with connect(database, "alice") as other:
        other.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 2")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="can't see the corrections that others have just"):
        alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'T {subject}')")
    alice.execute("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ")
    alice.execute("SELECT loracomp.alter_answers('urgency', priority => 3)")
    alice.execute("COMMIT")


def test_whoever_writes_to_the_table_can_correct_while_a_column_is_added(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(f"GRANT SELECT, UPDATE ON urgency, tickets TO {login('bob')}".encode())
    with connect(database, "bob") as bob, bob.transaction():
        bob.execute("UPDATE tickets SET seen = 7 WHERE id = 1")
        alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'Ticket: {body} {seen}')")
        bob.execute("SET LOCAL statement_timeout = '20s'")
        bob.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 2")
    answer_all(connection)
    assert alice.execute("SELECT id, correct FROM urgency ORDER BY id").fetchall() == [
        {"id": 1, "correct": None}, {"id": 2, "correct": "not urgent"},
    ]  # fmt: skip


def test_an_open_correction_holds_up_no_pause(connection: Connection, alice: Connection, database: str) -> None:
    with connect(database, "alice") as other, other.transaction():
        other.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 2")
        alice.execute("SET statement_timeout = '20s'")
        alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
        alice.execute("SELECT loracomp.cancel_answers('urgency')")


def test_an_example_whose_correction_is_open_is_erased_later_and_holds_up_nobody(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    example = value(connection, "SELECT example_id FROM loracomp.answer_row WHERE key = '{1}'")
    connection.execute("SET statement_timeout = '30s'")
    with connect(database, "adam") as adam, ThreadPoolExecutor(1) as pool, connect(database, "alice") as other:
        with other.transaction():
            other.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 2")  # which has the same text
            erased = pool.submit(adam.execute, "SELECT * FROM loracomp.erase_example(%s)", [example])
            wait_for_a_lock(connection)
            connection.execute("SELECT loracomp.refresh_reports()")
            connection.execute("SELECT loracomp.purge_jobs('1 day')")
            with pytest.raises(errors.LockNotAvailable, match="as a correction does, so nothing was erased"):
                erased.result(60)
        adam.execute("SELECT * FROM loracomp.erase_example(%s)", [example])
    assert alice.execute("SELECT FROM urgency WHERE correct IS NOT NULL").fetchall() == []


KEYS = {
    "varchar(3)": ("abc", "abcdef"),
    "char(3)": ("ab", "ab zzz"),
    "numeric(6,1)": ("1.2", "1.24"),
    "name": ("n" * 63, "n" * 64),
    "timestamp(0)": ("2026-01-01 00:00:00", "2026-01-01 00:00:00.2"),
}


@pytest.mark.parametrize("type_", KEYS)
def test_a_key_that_no_row_has_is_not_cut_to_one_that_a_row_has(
    connection: Connection, alice: Connection, type_: str
) -> None:
    key, longer = KEYS[type_]
    alice.execute(f"CREATE TABLE notes (k {type_} PRIMARY KEY, body text)".encode())
    alice.execute("INSERT INTO notes VALUES (%s, 'urgent')", [key])
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{body}', choices => '{urgent,not urgent}')")
    answer_all(connection)
    for statement in (
        "SELECT loracomp.correct_answer('says', %s::text, 'not urgent')",
        "SELECT * FROM loracomp.wait_for_answer('says', %s::text, '1 second')",
    ):
        with pytest.raises(errors.NoDataFound, match="has no row"):
            alice.execute(statement, [longer])
        alice.execute(statement, [key])


def test_a_filter_on_a_key_that_becomes_a_time_of_another_zone_means_the_same_to_all(
    connection: Connection, alice: Connection
) -> None:
    alice.execute("SET timezone = 'Asia/Kolkata'; SET datestyle = 'SQL, DMY'")
    alice.execute("CREATE TABLE notes (at timestamp PRIMARY KEY, body text)")
    alice.execute(
        "INSERT INTO notes SELECT '2026-02-01'::timestamp + i * interval '30 min', 'x' FROM generate_series(0, 23) AS i"
    )
    alice.execute(
        """SELECT loracomp.create_answers('says', 'notes', '{body}', filter => '{"at": "2026-02-01 06:00"}')"""
    )
    assert len(answer_all(connection)) == 1
    alice.execute("SELECT loracomp.alter_key('notes', 'at', 'timestamptz')")
    answer_all(connection)
    rows = alice.execute("SELECT at AT TIME ZONE 'UTC' AS at, status FROM says").fetchall()
    assert [(str(row["at"]), row["status"]) for row in rows] == [("2026-02-01 06:00:00", "answered")]
