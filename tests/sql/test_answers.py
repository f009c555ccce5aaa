"""A table gets its answers: what is declared is asked, shown, and follows the table."""

from collections.abc import Iterator

import pytest

from answers_data import TICKETS, URGENCY, answer_all, as_alice, ask, shown
from job_data import statuses
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from people_fixtures import login, value


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        yield opened


def test_rows_are_asked_and_answered_once(connection: Connection, alice: Connection) -> None:
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'old', 'one')")
    assert value(alice, URGENCY) == "urgency"
    assert shown(alice) == {1: ("waiting", None)}
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (2, 'new', 'two')")
    assert answer_all(connection) == ["Ticket: new two", "Ticket: old one"], "old rows wait behind new ones"
    assert shown(alice) == {1: ("answered", "one"), 2: ("answered", "two")}
    assert answer_all(connection) == []


def test_a_changed_prompt_is_asked_and_shows_the_old_answer_as_stale_meanwhile(
    connection: Connection, alice: Connection
) -> None:
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute("UPDATE tickets SET seen = 1")
    assert shown(alice) == {1: ("answered", "one")}
    assert answer_all(connection) == [], "the prompt does not name this column"
    alice.execute("UPDATE tickets SET body = 'two'")
    assert shown(alice) == {1: ("stale", "one")}
    assert list(ask(connection).values()) == ["Ticket: a two"]
    assert shown(alice) == {1: ("stale", "one")}


def test_a_deleted_row_takes_its_job_and_answer_with_it(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets (id, subject, body) SELECT i, 'a', 'b' FROM generate_series(1, 3) AS i")
    answer_all(connection)
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (4, 'a', 'b')")
    (waiting,) = ask(connection)
    alice.execute("DELETE FROM tickets WHERE id IN (1, 4)")
    assert answer_all(connection) == []
    assert len(statuses(connection)) == 2 and waiting not in statuses(connection)
    alice.execute("TRUNCATE tickets")
    assert answer_all(connection) == []
    assert statuses(connection) == {}
    assert value(connection, "SELECT count(*) FROM loracomp.answer_row") == 0


def test_a_row_that_has_nothing_to_ask_says_so(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, NULL, E' \\n'), (2, 'a', NULL), (3, 'a', repeat('x', 1000001))")
    assert answer_all(connection, "urgent") == ["Ticket: a "]
    assert shown(alice) == {1: ("refused", None), 2: ("answered", "urgent"), 3: ("refused", None)}
    reasons = alice.execute("SELECT reason FROM urgency WHERE status = 'refused' ORDER BY id").fetchall()
    assert [row["reason"] for row in reasons] == [
        "all columns of the prompt are empty",
        "the prompt is longer than 1000000 characters",
    ]
    alice.execute("UPDATE tickets SET body = 'b' WHERE id = 1")
    assert answer_all(connection, "urgent") == ["Ticket:  b"]


def test_what_is_corrected_is_shown_and_in_the_audit(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent'), (2, 'b', 'urgent')")
    answer_all(connection)
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 1")
    alice.execute("SELECT loracomp.correct_answer('urgency', 2, 'urgent')")
    corrected = alice.execute("SELECT id, correct FROM urgency ORDER BY id").fetchall()
    assert [(row["id"], row["correct"]) for row in corrected] == [(1, "not urgent"), (2, "urgent")]
    alice.execute("SELECT loracomp.correct_answer('urgency', 2, NULL)")
    assert value(alice, "SELECT correct IS NULL FROM urgency WHERE id = 2")
    events = connection.execute(
        "SELECT actor, reason FROM loracomp.audit_event WHERE entity = 'answers' ORDER BY id"
    ).fetchall()
    assert [(row["actor"], row["reason"]) for row in events] == [
        (login("alice"), reason) for reason in ("corrected", "corrected", "correction taken back")
    ]
