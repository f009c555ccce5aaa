"""Waiting for the answer to a row, and stopping a declaration."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors

from answers_data import TICKETS, URGENCY, answer_all, as_alice, ask, keep, shown
from job_data import record, statuses
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from people_fixtures import connect, login, one, value
from worker_helpers import wait_until

WAIT = "SELECT * FROM loracomp.wait_for_answer('urgency', %s, %s)"


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """She has declared a table with one ticket."""
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        opened.execute(URGENCY)
        opened.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
        yield opened


def test_waiting_ends_with_the_answer(connection: Connection, alice: Connection) -> None:
    waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND query LIKE '%%wait_for_answer%%'"
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(one, alice, WAIT, [1, "60s"])
        wait_until(lambda: connection.execute(waits, [alice.info.backend_pid]).fetchone() is not None)
        assert answer_all(connection) == ["Ticket: a one"]
        assert waited.result(60)["answer"] == "one"
    alice.execute("UPDATE tickets SET body = NULL, subject = NULL")
    assert one(alice, WAIT, [1, "0s"])["status"] == "stale"
    answer_all(connection)
    refused = {"status": "refused", "answer": None, "confidence": None, "reason": "all columns of the prompt are empty"}
    assert one(alice, WAIT, ["1", "60s"]) == refused


def test_a_row_without_an_answer_waits_again_once_it_is_written(connection: Connection, alice: Connection) -> None:
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (2, NULL, NULL)")
    (job,) = ask(connection)
    alice.execute("SELECT loracomp.cancel_job(%s)", [job])
    keep(connection)
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text)")
    alice.execute("INSERT INTO notes VALUES (1, 'old')")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}', backfill => false)")
    keep(connection)
    statuses_of = "SELECT array_agg(status ORDER BY id) FROM urgency", "SELECT array_agg(status) FROM says"
    assert [value(alice, each) for each in statuses_of] == [["failed", "refused"], ["skipped"]]
    alice.execute("UPDATE tickets SET body = 'mended'; UPDATE notes SET t = 'new'")
    waiting = {"status": "waiting", "answer": None, "confidence": None, "reason": None}
    for view, key in (("urgency", 1), ("urgency", 2), ("says", 1)):
        assert one(alice, "SELECT * FROM loracomp.wait_for_answer(%s, %s::bigint, '0s')", [view, key]) == waiting
    answer_all(connection)
    assert [value(alice, each) for each in statuses_of] == [["answered", "answered"], ["answered"]]


def test_waiting_ends_in_time(alice: Connection) -> None:
    assert one(alice, WAIT, [1, "0.1s"])["status"] == "waiting"


def test_a_reader_waits_for_rows_that_the_view_shows(connection: Connection, alice: Connection, database: str) -> None:
    answer_all(connection)
    with connect(database, "ana") as ana:
        with pytest.raises(errors.InsufficientPrivilege):
            one(ana, WAIT, [1, "60s"])
        alice.execute(f"GRANT SELECT ON urgency TO {login('ana')}".encode())
        assert one(ana, WAIT, [1, "60s"])["answer"] == "one"
        with pytest.raises(errors.NoDataFound, match="urgency has no row 2"):
            one(ana, WAIT, [2, "60s"])
        alice.execute(f"ALTER TABLE tickets ENABLE ROW LEVEL SECURITY; GRANT SELECT (id) ON tickets TO {login('ana')}")
        with pytest.raises(errors.NoDataFound, match="urgency has no row 1"):
            one(ana, WAIT, [1, "60s"])


@pytest.mark.parametrize(
    ("before", "call", "says"),
    [
        ("", "'urgency', 1, '6min'", "timeout must be between 0 and 5 minutes"),
        ("", "'urgency', 1, NULL", "timeout must be between 0 and 5 minutes"),
        ("", "'tickets', 1", "tickets is not a view of answers"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ; ", "'urgency', 1", "isolation level repeatable read"),
        ("BEGIN; UPDATE tickets SET body = 'two'; ", "'urgency', 1", "answered only once it is committed"),
    ],
)
def test_waiting_for_nothing_is_refused(alice: Connection, before: str, call: str, says: str) -> None:
    alice.execute("SET statement_timeout = '60s'")
    with pytest.raises(psycopg.Error, match=says):
        alice.execute(f"{before}SELECT loracomp.wait_for_answer({call})".encode())


def test_a_cancelled_declaration_asks_the_rest_once_it_is_resumed(connection: Connection, alice: Connection) -> None:
    answer_all(connection)
    alice.execute("UPDATE tickets SET body = 'new'; INSERT INTO tickets VALUES (2, 'b', 'two')")
    running = ask(connection)
    alice.execute("INSERT INTO tickets VALUES (3, 'c', 'three')")
    keep(connection)
    assert value(alice, "SELECT loracomp.cancel_answers('urgency')") == 3
    assert set(statuses(connection).values()) == {"succeeded"}
    row: dict[str, Any] = {"job_id": min(running), "output": "urgent", "adapter_sha256": []}
    assert record(connection, {min(running): None}, [row]) == set(), "it isn't the worker's any more"
    assert answer_all(connection) == []
    assert shown(alice) == {1: ("stale", "one"), 2: ("waiting", None), 3: ("waiting", None)}
    assert one(alice, "SELECT state, open FROM loracomp.list_answers()") == {"state": "paused", "open": 4}, (
        "the scan that will ask them counts as one row"
    )
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => false)")
    assert sorted(answer_all(connection)) == ["Ticket: a new", "Ticket: b two", "Ticket: c three"]
    assert shown(alice) == {1: ("answered", "new"), 2: ("answered", "two"), 3: ("answered", "three")}


def test_only_who_may_change_a_declaration_cancels_it(alice: Connection, database: str) -> None:
    with connect(database, "bob") as bob, pytest.raises(errors.NoDataFound, match="not a declaration of yours"):
        bob.execute("SELECT loracomp.cancel_answers('urgency')")
