"""A table gets its answers: what is declared is asked, shown, and follows the table."""

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from answers_data import TICKETS, URGENCY, answer_all, as_alice, ask, keep, keep_and_claim, shown
from conftest import create_database, drop_database, url_of
from job_data import add_base_model, claim, record, statuses
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.connections import Connection
from people_fixtures import connect, login, value
from worker_helpers import wait_until, working


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


@pytest.mark.parametrize("blank", ["\u00a0", "\u2003\u3000", "\x1c", "\u0085\u202f"])
def test_columns_of_any_white_space_are_empty(connection: Connection, alice: Connection, blank: str) -> None:
    """The same characters as in the prompt of a job, and whatever words the template adds."""
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, %s, %s), (2, %s, 'text')", [blank, blank, blank])
    assert answer_all(connection, "urgent") == [f"Ticket: {blank} text"]
    assert shown(alice) == {1: ("refused", None), 2: ("answered", "urgent")}
    assert value(alice, "SELECT reason FROM urgency WHERE id = 1") == "all columns of the prompt are empty"
    with pytest.raises(errors.NoDataFound, match="this row has no prompt that can be answered"):
        alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    tried = "SELECT array_agg(p.filled) FROM loracomp.try_prompts('tickets', 'Note: {body}') AS p"
    assert value(alice, tried) == ["Note: text"]


def test_what_is_corrected_is_shown_and_in_the_audit(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'urgent'), (2, 'b', 'urgent')")
    answer_all(connection)
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 1")
    alice.execute("SELECT loracomp.correct_answer('urgency', 2, 'urgent')")
    corrected = alice.execute("SELECT id, correct FROM urgency ORDER BY id").fetchall()
    assert [(row["id"], row["correct"]) for row in corrected] == [(1, "not urgent"), (2, "urgent")]
    for _ in range(2):
        alice.execute("SELECT loracomp.correct_answer('urgency', 2, NULL)")
    assert value(alice, "SELECT correct IS NULL FROM urgency WHERE id = 2")
    events = connection.execute(
        "SELECT actor, reason FROM loracomp.audit_event WHERE entity = 'declaration' ORDER BY id"
    ).fetchall()
    assert [(row["actor"], row["reason"]) for row in events] == [
        (login("alice"), reason) for reason in ("corrected", "corrected", "correction taken back")
    ]


def test_correct_answer_corrects_one_row_or_none(connection: Connection, alice: Connection) -> None:
    """A key of several columns has no single value that names a row."""
    alice.execute("CREATE TABLE notes (a integer, b integer, t text, PRIMARY KEY (a, b))")
    alice.execute("INSERT INTO notes VALUES (1, 1, 'x'), (1, 2, 'y')")
    alice.execute("SELECT loracomp.create_answers('kinds', 'notes', '{t}')")
    answer_all(connection)
    with pytest.raises(errors.InvalidParameterValue, match="kinds is not a view of answers whose key has one column"):
        alice.execute("SELECT loracomp.correct_answer('kinds', 1, 'x')")
    assert value(alice, "SELECT count(correct) FROM kinds") == 0
    alice.execute(URGENCY)
    with pytest.raises(errors.NoDataFound, match="urgency has no row 7"):
        alice.execute("SELECT loracomp.correct_answer('urgency', 7, 'urgent')")


def test_answers_come_in_a_feed_that_misses_nothing(connection: Connection, alice: Connection, database: str) -> None:
    alice.execute(URGENCY)
    alice.execute("LISTEN loracomp_answers")
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one'), (2, 'a', 'two'), (3, NULL, NULL)")
    with db.connect(database) as slow, slow.transaction():
        slow.execute("SELECT pg_current_xact_id()")
        answer_all(connection)
        assert feed(alice) == [], "another transaction may still commit before these"
    rows = feed(alice)
    assert [(row["key"], row["status"], row["answer"]) for row in rows] == [
        (["3"], "refused", None),
        (["1"], "answered", "one"),
        (["2"], "answered", "two"),
    ]
    assert [row["key"] for row in feed(alice, rows[1]["cursor"])] == [["2"]]
    assert [row["key"] for row in feed(alice, None, 1)] == [["3"]]
    assert feed(alice, rows[-1]["cursor"]) == []
    with pytest.raises(errors.InvalidParameterValue, match="most must be between 0"):
        feed(alice, None, -1)
    alice.execute("UPDATE tickets SET body = 'four' WHERE id = 1")
    answer_all(connection)
    assert [row["answer"] for row in feed(alice, rows[-1]["cursor"])] == ["four"]
    assert [each.payload for each in alice.notifies(timeout=20, stop_after=3)] == ["public.urgency"] * 3


def test_a_listener_to_one_declaration_is_not_woken_by_others(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("SELECT loracomp.create_answers('other', 'tickets', '{body}')")
    alice.execute('ALTER VIEW other RENAME TO "Other\'s"')
    channel = value(alice, "SELECT channel FROM loracomp.list_answers('\"Other''s\"')")
    assert f"LISTEN {channel}:" in value(alice, "SELECT obj_description('\"Other''s\"'::regclass)")
    alice.execute(f"LISTEN {channel}".encode())
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
    assert answer_all(connection) == ["one"]
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => false)")
    assert answer_all(connection) == ["Ticket: a one"]
    alice.execute(f"NOTIFY {channel}, 'over'".encode())
    (woken,) = takewhile(lambda notice: notice.payload != "over", alice.notifies(timeout=20))
    assert (woken.channel, woken.payload) == (channel, 'public."Other\'s"')


def test_what_else_changes_a_job_brings_no_answer_again(connection: Connection, alice: Connection) -> None:
    """Renaming a base model updates all of its jobs."""
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one'), (2, 'b', 'two')")
    answer_all(connection)
    before = feed(alice)
    connection.execute("UPDATE loracomp.base_model SET name = 'renamed'")
    keep(connection)
    assert len(before) == 2 and feed(alice) == before


@pytest.mark.parametrize(
    "since",
    [
        "",
        "x",
        "{}",
        "5",
        "null",
        '"x"',
        "[]",
        "[1]",
        '[1, ["a"]]',
        '[null, ["a"], 1]',
        "[1, null, 1]",
        '[1, ["a"], null]',
    ],
)
def test_what_is_no_cursor_is_refused(alice: Connection, since: str) -> None:
    """It would bring all answers again."""
    alice.execute(URGENCY)
    with pytest.raises(errors.InvalidParameterValue, match="since is not a cursor that answers_since has returned"):
        feed(alice, since)


def feed(connection: Connection, *arguments: object) -> list[dict[str, Any]]:
    places = ", ".join(["%s"] * len(arguments))
    call = f"SELECT * FROM loracomp.answers_since('urgency'{', ' * bool(arguments)}{places})"
    return connection.execute(call.encode(), arguments).fetchall()


def test_all_rows_are_asked_again_behind_new_ones_or_with_another_prompt(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
    answer_all(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (2, 'a', 'two')")
    assert answer_all(connection) == ["Ticket: a two", "Ticket: a one"]
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (3, 'a', 'three')")
    (job,) = ask(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => '{{{body}}}')")
    assert shown(alice) == {1: ("stale", "one"), 2: ("stale", "two"), 3: ("waiting", None)}, (
        "before the scan comes to them"
    )
    token = value(connection, "SELECT lease_token FROM loracomp.job WHERE id = %s", [job])
    record(connection, {job: token}, [{"job_id": job, "output": "three", "adapter_sha256": []}])
    connection.execute("SELECT loracomp.take_answers()")
    assert shown(alice)[3] == ("stale", "three"), "it was asked with the old prompt"
    alice.execute("DELETE FROM tickets WHERE id = 3")
    assert answer_all(connection, "urgent") == ["{one}", "{two}"]
    assert shown(alice) == {1: ("answered", "urgent"), 2: ("answered", "urgent")}
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => '{{{body}}}')")
    assert shown(alice) == {1: ("answered", "urgent"), 2: ("answered", "urgent")}, "it is the prompt that it was"
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => '{body}')")
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => '{{{body}}}')")
    assert {status for status, _ in shown(alice).values()} == {"stale"}
    assert answer_all(connection) == []
    assert shown(alice) == {1: ("answered", "urgent"), 2: ("answered", "urgent")}
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
    alice.execute("INSERT INTO tickets (id, body) VALUES (3, 'three')")
    assert answer_all(connection) == []
    assert shown(alice)[3] == ("waiting", None)
    assert value(alice, "SELECT state FROM loracomp.list_answers()") == "paused"
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => false, again => NULL)")
    assert answer_all(connection) == ["{three}"]


def test_a_paused_declaration_keeps_one_hint_a_row(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one'), (2, 'a', 'two')")
    for number in range(5):
        alice.execute("UPDATE tickets SET body = body || %s", [number])
    assert ask(connection) == {}
    assert value(connection, "SELECT count(*) FROM loracomp.answer_hint") == 2
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => false)")
    assert answer_all(connection) == ["Ticket: a one01234", "Ticket: a two01234"]


def test_handled_hints_are_passed_over_and_late_ones_are_not(
    connection: Connection, alice: Connection, database: str
) -> None:
    """Under an old snapshot they can't be removed. One that commits late has written its hints before others."""
    alice.execute(URGENCY)
    passed = "SELECT a.hints_from > (SELECT max(t.xmin::text::bigint) FROM tickets AS t) FROM loracomp.declaration AS a"
    with connect(database, "alice") as late, late.transaction():
        late.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
        for number in range(2, 6):
            alice.execute("INSERT INTO tickets (id, subject, body) VALUES (%s, 'a', 'two')", [number])
            assert answer_all(connection) == ["Ticket: a two"]
        assert not value(connection, passed)
    assert answer_all(connection) == ["Ticket: a one"]
    numbers = count(6)

    def is_passed_over() -> bool:
        alice.execute("INSERT INTO tickets (id, subject, body) VALUES (%s, 'a', 'two')", [next(numbers)])
        assert answer_all(connection) == ["Ticket: a two"]
        return value(connection, passed)

    wait_until(is_passed_over)
    assert {status for status, _ in shown(alice).values()} == {"answered"}


def test_rows_of_loracomps_owner_are_asked_while_their_table_is_vacuumed(
    connection: Connection, database: str, alice: Connection
) -> None:
    connection.execute("CREATE TABLE public.ours (id integer PRIMARY KEY, body text)")
    try:
        connection.execute("SELECT loracomp.create_answers('said', 'public.ours', '{body}')")
        with db.connect(database) as vacuum, vacuum.transaction():
            vacuum.execute("LOCK TABLE public.ours, public.tickets IN SHARE UPDATE EXCLUSIVE MODE")
            connection.execute("INSERT INTO public.ours VALUES (1, 'one')")
            assert answer_all(connection) == ["one"]
    finally:
        connection.execute("DROP TABLE public.ours CASCADE")


def test_rows_of_another_owner_wait_while_their_table_is_vacuumed(
    connection: Connection, database: str, alice: Connection
) -> None:
    """Nothing may be added to the table between the look for its owner's code and the reading of its rows."""
    alice.execute(URGENCY)
    answer_all(connection)
    with db.connect(database) as vacuum, vacuum.transaction():
        vacuum.execute("LOCK TABLE public.tickets IN SHARE UPDATE EXCLUSIVE MODE")
        alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
        assert ask(connection) == {}
        assert shown(alice) == {1: ("waiting", None)}
        assert "could not obtain lock" in value(alice, "SELECT state FROM loracomp.list_answers()")
    assert value(connection, "SELECT retry_at < now() + interval '5 seconds' FROM loracomp.declaration"), "not ten"
    connection.execute("UPDATE loracomp.declaration SET retry_at = now()")
    assert answer_all(connection) == ["Ticket: a one"]
    assert value(alice, "SELECT state FROM loracomp.list_answers()") == "ready"


def test_the_view_is_read_in_time_while_many_rows_have_changed(connection: Connection, alice: Connection) -> None:
    """Each answer was compared with each hint."""
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets SELECT i, 'a', 'b' FROM generate_series(1, 40000) AS i")
    connection.execute("DELETE FROM loracomp.answer_hint; UPDATE loracomp.declaration SET scan = NULL")
    connection.execute(
        "INSERT INTO loracomp.answer_row (declaration_id, key, status, prompt_hash, answer)"
        " SELECT a.id, ARRAY[t.id::text], 'answered', '', 'urgent' FROM loracomp.declaration AS a, tickets AS t"
    )
    alice.execute("UPDATE tickets SET body = 'c' WHERE id > 100")
    connection.execute("ANALYZE loracomp.answer_hint, loracomp.answer_row")
    alice.execute("SET work_mem = '64kB'; SET statement_timeout = '60s'")
    rows = alice.execute("SELECT status, count(*) AS n FROM urgency GROUP BY 1").fetchall()
    assert {row["status"]: row["n"] for row in rows} == {"answered": 100, "stale": 39900}


def test_rows_are_listed_in_the_order_of_the_tables_key(connection: Connection, alice: Connection) -> None:
    """Numbers as numbers, page after page."""
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets SELECT i, 'a', 'b' FROM generate_series(-2, 12) AS i")
    answer_all(connection, "urgent")
    alice.execute("UPDATE tickets SET body = 'c' WHERE id = 12")
    listed = "SELECT key[1]::integer AS id, status FROM loracomp.list_answer_rows('urgency', %s, 8)"
    first, second = (alice.execute(listed, [after]).fetchall() for after in (None, ["5"]))
    assert [row["id"] for row in first] == [-2, -1, 0, 1, 2, 3, 4, 5]
    assert [row["id"] for row in second] == [6, 7, 8, 9, 10, 11, 12]
    assert [row["status"] for row in second] == ["answered"] * 6 + ["stale"]


def test_a_renamed_column_is_followed_and_a_dropped_one_pauses(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY.replace("}')", "}', filter => '{\"seen\": [0, 1]}')"))
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
    answer_all(connection)
    alice.execute("ALTER TABLE tickets RENAME body TO \"the $body$ 'text'\"")
    alice.execute("ALTER TABLE tickets RENAME seen TO looked")
    alice.execute("ALTER TABLE tickets RENAME id TO number")
    alice.execute('ALTER TABLE tickets RENAME TO "My tickets"')
    alice.execute("INSERT INTO \"My tickets\" VALUES (2, 'a', 'two', 1), (3, 'a', 'three', 7)")
    assert answer_all(connection) == ["Ticket: a two"]
    assert answer_all(connection) == []
    prompt = value(alice, "SELECT prompt FROM loracomp.list_answers()")
    assert prompt == "Ticket: {subject} {the $body$ 'text'}"
    assert shown(alice) == {1: ("answered", "one"), 2: ("answered", "two")}
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 2")
    assert value(alice, "SELECT correct FROM urgency WHERE id = 2") == "urgent"
    alice.execute('ALTER TABLE "My tickets" DROP COLUMN subject')
    alice.execute('UPDATE "My tickets" SET looked = 0')
    assert answer_all(connection) == []
    assert "subject was dropped" in value(alice, "SELECT state FROM loracomp.list_answers()")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="column subject was dropped: give another prompt"):
        alice.execute("SELECT loracomp.correct_answer('urgency', 2, 'not urgent')")
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => $$It is {the $body$ 'text'}$$)")
    assert sorted(answer_all(connection)) == ["It is one", "It is three", "It is two"]
    alice.execute('ALTER TABLE "My tickets" RENAME "the $body$ \'text\'" TO "b {x}"')
    alice.execute('UPDATE "My tickets" SET "b {x}" = 1')
    assert answer_all(connection) == []
    assert 'column "b {x}" of the prompt has a name with a brace' in value(
        alice, "SELECT state FROM loracomp.list_answers()"
    )
    alice.execute('ALTER TABLE "My tickets" RENAME "b {x}" TO body')
    connection.execute("UPDATE loracomp.declaration SET retry_at = '-infinity'")
    assert answer_all(connection) == ["It is 1"] * 3
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => '{body}')")


def test_a_column_that_becomes_bytea_pauses(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one')")
    answer_all(connection)
    alice.execute("ALTER TABLE tickets ALTER body TYPE bytea USING body::bytea")
    alice.execute("UPDATE tickets SET body = 'two'")
    assert ask(connection) == {}
    assert value(alice, "SELECT state FROM loracomp.list_answers()") == "column body is bytea, which is no text"
    alice.execute("CREATE DOMAIN bytes AS bytea; CREATE DOMAIN more AS bytes")
    alice.execute("ALTER TABLE tickets ADD more more, ADD many bytea[]")
    for column in ("more", "many"):
        with pytest.raises(errors.WrongObjectType, match=f"column {column} is bytea"):
            alice.execute("SELECT loracomp.create_answers('others', 'tickets', %s)", [f"{{{column}}}"])


def test_a_lost_primary_key_pauses(connection: Connection, alice: Connection) -> None:
    """Rows with equal keys would stop all others of their page, without a word on why."""
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one')")
    answer_all(connection)
    alice.execute("ALTER TABLE tickets DROP CONSTRAINT tickets_pkey")
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'two'), (2, 'a', 'three')")
    assert ask(connection) == {}
    assert "no longer has the primary key (id): add it again" in value(
        alice, "SELECT state FROM loracomp.list_answers()"
    )
    alice.execute("DELETE FROM tickets WHERE body = 'two'; ALTER TABLE tickets ADD PRIMARY KEY (id)")
    connection.execute("UPDATE loracomp.declaration SET retry_at = now()")
    assert answer_all(connection) == ["Ticket: a three"]


def test_a_view_that_was_restored_without_its_declaration_is_named(connection: Connection, alice: Connection) -> None:
    """pg_restore --clean of the user's schema leaves such a view."""
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one')")
    answer_all(connection)
    shows = value(alice, "SELECT pg_get_viewdef('urgency')")
    alice.execute("DROP VIEW urgency")
    connection.execute(f"CREATE VIEW public.urgency AS {shows}".encode())
    connection.execute(f"ALTER VIEW public.urgency OWNER TO {login('alice')}".encode())
    assert ask(connection) == {}
    assert "view public.urgency depends on" in value(connection, "SELECT trouble FROM loracomp.declaration")
    alice.execute("DROP VIEW urgency")
    connection.execute("UPDATE loracomp.declaration SET retry_at = now()")
    assert ask(connection) == {}
    alice.execute(URGENCY)
    assert answer_all(connection) == ["Ticket: a one"]


def test_a_dropped_table_or_view_cleans_up(connection: Connection, alice: Connection) -> None:
    for statement in (
        "DROP TABLE tickets CASCADE",
        "DROP VIEW urgency",
        "SELECT loracomp.drop_answers('urgency')",
        "SELECT loracomp.alter_answers('urgency', paused => true); DROP VIEW urgency",
    ):
        alice.execute("DROP TABLE IF EXISTS tickets")
        alice.execute(TICKETS)
        alice.execute(URGENCY)
        alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
        assert len(ask(connection)) == 1
        alice.execute(statement.encode())
        assert ask(connection) == {}
        for relation in ("declaration", "answer_row", "answer_hint", "job"):
            assert value(connection, f"SELECT count(*) FROM loracomp.{relation}") == 0
        left = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'loracomp_parts'::regnamespace AND proname ~ '[0-9]$'"
        assert value(connection, left) == 0


KINDS = {
    "composite": ("a integer, b text, t text, PRIMARY KEY (a, b)", "(1, 'x', 'one'), (1, 'Y', 'two')", "b = 'Y'"),
    "quoted": ('"The Id" uuid PRIMARY KEY, t text', "(gen_random_uuid(), 'one'), (gen_random_uuid(), 'two')", "true"),
    "times": (
        "a timestamptz, b date, n numeric, PRIMARY KEY (a, b, n), t text",
        "('2026-01-01 12:00+05', 'infinity', 1.50, 'one'), ('infinity', '0044-03-15 BC', 2, 'two')",
        "n = 1.5",
    ),
    "generated": ("a integer PRIMARY KEY, s text, t text GENERATED ALWAYS AS (upper(s)) STORED", "(1, 'one')", "a = 1"),
    "json": ("a smallint PRIMARY KEY, t jsonb, b boolean", "(1, '{\"x\": [1, null]}', true), (2, NULL, true)", "a = 1"),
    "partitioned": ("a integer PRIMARY KEY, t text) PARTITION BY RANGE (a", "(1, 'one'), (12, 'two')", "a = 12"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_columns_of_many_kinds(connection: Connection, alice: Connection, kind: str) -> None:
    columns, rows, one_row = KINDS[kind]
    alice.execute(f'CREATE TABLE "Odd {{}} $body$" ({columns})'.encode())
    if kind == "partitioned":
        for bounds in ("(0) TO (10)", "(10) TO (20)"):
            part = f'CREATE TABLE "part {bounds}" PARTITION OF "Odd {{}} $body$" FOR VALUES FROM {bounds}'
            alice.execute(part.encode())
    alice.execute("""SELECT loracomp.create_answers('"Odd name"', '"Odd {} $body$"', E'$body$ \\'{{ {t}\\n$read$')""")
    insert = f'INSERT INTO "Odd {{}} $body$" VALUES {rows}'
    if kind == "generated":
        insert = f'INSERT INTO "Odd {{}} $body$" (a, s) VALUES {rows}'
    alice.execute("SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'")
    alice.execute(insert.encode())
    prompts = answer_all(connection, "yes")
    assert all(prompt.startswith("$body$ '{ ") and prompt.endswith("\n$read$") for prompt in prompts)
    answered = alice.execute(
        f"""SELECT answer FROM "Odd name" WHERE {one_row} AND status = 'answered'""".encode()
    ).fetchall()
    assert answered and {row["answer"] for row in answered} == {"yes"}
    alice.execute(f"""UPDATE "Odd name" SET correct = 'no' WHERE {one_row}""".encode())
    assert value(alice, "SELECT count(*) FROM \"Odd name\" WHERE correct = 'no'") == len(answered)
    alice.execute(f'DELETE FROM "Odd {{}} $body$" WHERE {one_row}'.encode())
    assert answer_all(connection) == []
    left = value(alice, 'SELECT count(*) FROM "Odd {} $body$"')
    assert value(connection, "SELECT count(*) FROM loracomp.answer_row") == left


def test_a_virtual_column_is_followed(connection: Connection, alice: Connection) -> None:
    """Triggers see no values of such columns."""
    if connection.info.server_version < 180000:
        pytest.skip("virtual columns came with PostgreSQL 18")
    for parts in ("", "PARTITION BY HASH (id)"):
        columns = "id integer PRIMARY KEY, a text, b text, t text GENERATED ALWAYS AS (a || b) VIRTUAL"
        alice.execute(f"CREATE TABLE notes ({columns}) {parts}".encode())
        if parts:
            alice.execute("CREATE TABLE all_notes PARTITION OF notes FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
        alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
        alice.execute("INSERT INTO notes VALUES (1, 'x', 'y')")
        assert answer_all(connection) == ["xy"]
        alice.execute("UPDATE notes SET b = 'z'")
        assert shown(alice, "says") == {1: ("stale", "xy")}
        assert answer_all(connection) == ["xz"]
        alice.execute("SELECT loracomp.drop_answers('says'); DROP TABLE notes")


@pytest.mark.parametrize("parent", ["INHERITS (notes)", "PARTITION OF parts FOR VALUES IN (1)"])
def test_a_table_that_is_part_of_another_is_refused(connection: Connection, alice: Connection, parent: str) -> None:
    """Statements on the other one would fire none of its triggers."""
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text)")
    alice.execute("CREATE TABLE parts (id integer PRIMARY KEY, t text) PARTITION BY LIST (id)")
    alice.execute(f"CREATE TABLE letters {'(PRIMARY KEY (id))' * ('INHERITS' in parent)} {parent}".encode())
    with pytest.raises(errors.WrongObjectType, match=r"table public\.letters is part of another table"):
        alice.execute("SELECT loracomp.create_answers('says', 'letters', '{t}')")


PARTED = "CREATE TABLE notes (id integer PRIMARY KEY, t text) PARTITION BY RANGE (id)"
PARTITION = "CREATE TABLE notes_{0} PARTITION OF notes FOR VALUES FROM ({0}) TO ({1})"


def test_a_table_that_becomes_part_of_another_says_so(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute("CREATE TABLE parent (LIKE tickets INCLUDING INDEXES) PARTITION BY RANGE (id)")
    alice.execute("ALTER TABLE parent ATTACH PARTITION tickets DEFAULT")
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one')")
    assert answer_all(connection) == []
    assert "tickets is part of another table" in value(alice, "SELECT state FROM loracomp.list_answers()")
    alice.execute("ALTER TABLE parent DETACH PARTITION tickets")
    connection.execute("UPDATE loracomp.declaration SET retry_at = '-infinity'")
    assert answer_all(connection) == ["Ticket: a one"]


def test_statements_on_a_partitioned_table_or_a_partition_are_noticed(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(PARTED)
    alice.execute(PARTITION.format(0, 10).encode())
    alice.execute(PARTITION.format(10, 20).encode())
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    alice.execute("INSERT INTO notes VALUES (1, 'one'), (11, 'eleven'); INSERT INTO notes_0 VALUES (2, 'two')")
    assert sorted(answer_all(connection)) == ["eleven", "one", "two"]
    alice.execute("UPDATE notes SET id = 12 WHERE id = 1; UPDATE notes_0 SET t = 'three'")
    assert sorted(answer_all(connection)) == ["one", "three"]
    alice.execute("MERGE INTO notes AS n USING (VALUES (11), (13)) AS g (id) ON n.id = g.id"
        " WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (g.id, 'new')")  # fmt: skip
    assert answer_all(connection) == ["new"]
    alice.execute("TRUNCATE notes_0")
    assert answer_all(connection) == []
    assert shown(alice, "says") == {12: ("answered", "one"), 13: ("answered", "new")}
    assert value(connection, "SELECT count(*) FROM loracomp.answer_row") == 2


def test_a_statement_costs_a_partitioned_table_no_more_than_another(connection: Connection, alice: Connection) -> None:
    """Each row took a subtransaction of its own, with a transaction id."""
    alice.execute(PARTED)
    alice.execute(PARTITION.format(0, 10000).encode())
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    with alice.transaction():
        alice.execute("INSERT INTO notes SELECT i, 'a' FROM generate_series(1, 2000) AS i")
        before = value(alice, "SELECT pg_current_xact_id()::text::bigint")
    assert value(alice, "SELECT pg_current_xact_id()::text::bigint") - before < 20
    assert value(connection, "SELECT count(*) FROM loracomp.answer_hint") == 2000


@pytest.mark.parametrize(
    "locked", ["loracomp.answer_hint", "loracomp.answer_hint, loracomp.scan_request", "loracomp.declaration"]
)
def test_a_statement_waits_two_seconds_for_locked_hints_in_all(
    connection: Connection, alice: Connection, database: str, locked: str
) -> None:
    alice.execute(PARTED)
    alice.execute(PARTITION.format(0, 10000).encode())
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    alice.execute("SELECT loracomp.create_answers('says' || i, 'notes', '{t}', filter => '{\"t\": \"x\"}')"
                  " FROM generate_series(1, 12) AS i")  # fmt: skip
    alice.execute("INSERT INTO notes SELECT i, 'a' FROM generate_series(1, 20) AS i")
    with db.connect(database) as installer, installer.transaction():
        installer.execute(f"LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE".encode())
        began = time.monotonic()
        alice.execute(
            "MERGE INTO notes AS n USING generate_series(11, 30) AS g (id) ON n.id = g.id"
            " WHEN MATCHED AND n.id = 11 THEN DELETE WHEN MATCHED THEN UPDATE SET t = 'b'"
            " WHEN NOT MATCHED THEN INSERT VALUES (g.id, 'c')"
        )
        assert time.monotonic() - began < 2, "not for each declaration, nor for each of the three commands"
    if locked != "loracomp.answer_hint":
        connection.execute("UPDATE loracomp.declaration SET scanned_at = now() - interval '25 hours'")
    asked = answer_all(connection)
    assert asked.count("a") == 10 and asked.count("b") == 9 and asked.count("c") == 10


def test_null_may_be_one_of_a_filters_values(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY.replace("}')", '}\', filter => \'{"seen": [null, 1], "subject": null}\')'))
    rows = "(1, NULL, 'b', NULL), (2, NULL, 'b', 1), (3, NULL, 'b', 2), (4, 'a', 'b', 1)"
    alice.execute(f"INSERT INTO tickets VALUES {rows}".encode())
    assert len(answer_all(connection)) == 2
    assert set(shown(alice)) == {1, 2}


def test_a_filter_on_letters_that_are_filled_up_with_blanks(connection: Connection, alice: Connection) -> None:
    alice.execute("CREATE TABLE lands (id integer PRIMARY KEY, t text, code char(3), long varchar(5))")
    alice.execute(
        """SELECT loracomp.create_answers('l', 'lands', '{t}', filter => '{"code": "ab", "long": ["x", "y"]}')"""
    )
    alice.execute("INSERT INTO lands VALUES (1, 'one', 'ab', 'x'), (2, 'two', 'abc', 'x'), (3, 'three', 'ab', 'z')")
    assert answer_all(connection) == ["one"]
    assert set(shown(alice, "l")) == {1}


def test_a_filter_compares_as_the_columns_type_does(connection: Connection, alice: Connection) -> None:
    """However a session writes dates and numbers."""
    alice.execute("CREATE DOMAIN day AS date")
    alice.execute(
        "CREATE TABLE notes (id integer PRIMARY KEY, t text, ok boolean, price numeric, day day, tags jsonb,"
        " share double precision DEFAULT 0.1::float8 + 0.2::float8, every interval DEFAULT '1 year 2 mons')"
    )
    wanted = (
        '{"ok": true, "price": [2.50, "7"], "day": "2026-02-01", "tags": "[]", "share": 0.30000000000000004,'
        ' "every": "14 months"}'
    )
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}', filter => %s)", [wanted])
    alice.execute(
        "INSERT INTO notes VALUES (1, 'one', true, 2.5, '2026-02-01', '[]'), (2, 'two', false, 7, '2026-02-01', '[]'),"
        " (3, 'three', true, 7.00, '2026-02-01', '[]'), (4, 'four', true, 7, '2026-01-02', '[]')"
    )
    assert sorted(answer_all(connection)) == ["one", "three"]
    alice.execute("SET datestyle = 'SQL, DMY'; SET extra_float_digits = -15; SET intervalstyle = sql_standard")
    assert shown(alice, "says") == {1: ("answered", "one"), 3: ("answered", "three")}


def test_a_filter_means_the_same_to_its_view_and_to_the_keeper(connection: Connection, alice: Connection) -> None:
    """Whatever session declares it."""
    alice.execute("SET timezone = 'America/New_York'; SET datestyle = 'SQL, DMY'; SET array_nulls = off")
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text, at timestamptz, day date, code text)")
    alice.execute(
        "INSERT INTO notes SELECT i, 'n' || i, '2026-01-02 00:00Z'::timestamptz + i * interval '1 hour', day, code"
        " FROM generate_series(0, 9) AS i,"
        " (VALUES (date '2026-02-01', 'NULL'), (date '2026-01-02', NULL)) AS v (day, code)"
        " WHERE (code IS NULL) = (i % 2 = 0)"
    )
    even = ["n0", "n2", "n4", "n6", "n8"]
    filters = {
        '{"at": ["2026-01-02 00:00", "2026-01-02 05:00"]}': ["n0", "n5"],
        '{"day": "01/02/2026"}': even,
        '{"day": "today"}': [],
        '{"code": [null]}': even,
    }
    for number, (each, passing) in enumerate(filters.items()):
        view = f"says{number}"
        alice.execute("SELECT loracomp.create_answers(%s, 'notes', '{t}', filter => %s)", [view, each])
        assert sorted(answer_all(connection)) == passing
        assert sorted(shown(alice, view).values()) == [("answered", answer) for answer in passing]
    with pytest.raises(
        errors.InvalidDatetimeFormat, match=r'filter, column day: invalid input syntax for type date: "x"'
    ):
        alice.execute("""SELECT loracomp.create_answers('other', 'notes', '{t}', filter => '{"day": "x"}')""")


@pytest.mark.parametrize(
    "type_", ["regclass", "money", "daterange", "timestamptz[]", "real[]", "interval[]", "point", "box[]", "vector"]
)
def test_no_filter_compares_what_each_session_writes_in_its_way(alice: Connection, type_: str) -> None:
    alice.execute(f"CREATE TABLE notes (id integer PRIMARY KEY, t text, odd {type_})".encode())
    with pytest.raises(errors.WrongObjectType, match=r"filter, column odd: .* depends on the settings of the session"):
        alice.execute("""SELECT loracomp.create_answers('says', 'notes', '{t}', filter => '{"odd": "x"}')""")
    assert value(alice, "SELECT loracomp.create_answers('says', 'notes', '{t} {odd}')") == "says", (
        "in a prompt it may be"
    )


def test_a_filter_compares_enums_and_arrays_of_texts(connection: Connection, alice: Connection) -> None:
    alice.execute("CREATE TYPE mood AS ENUM ('good', 'bad')")
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text, mood mood, tags text[], moods mood[])")
    alice.execute("INSERT INTO notes VALUES (1, 'one', 'good', '{a,b}', '{bad}'), (2, 'two', 'bad', '{a,b}', '{bad}')")
    wanted = '{"mood": "good", "tags": "{a,b}", "moods": "{bad}"}'
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}', filter => %s)", [wanted])
    assert answer_all(connection) == ["one"]


@pytest.mark.parametrize(("column", "allowed"), [("mood", "good"), ("moods", "{bad,good}")])
def test_a_value_of_an_enum_that_a_filter_names_is_renamed(
    connection: Connection, alice: Connection, column: str, allowed: str
) -> None:
    alice.execute("CREATE TYPE mood AS ENUM ('good', 'bad')")
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text, mood mood, moods mood[])")
    alice.execute("INSERT INTO notes VALUES (1, 'one', 'good', '{bad,good}')")
    with pytest.raises(errors.InvalidParameterValue, match=f"filter, column {column}: type public.mood.* has no value"):
        alice.execute(
            "SELECT loracomp.create_answers('says', 'notes', '{t}', filter => %s)",
            [f'{{"{column}": "{allowed.replace("good", "dog")}"}}'],
        )
    wanted = [f'{{"{column}": "{allowed}"}}']
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}', filter => %s)", wanted)
    assert answer_all(connection) == ["one"]
    alice.execute("UPDATE says SET correct = 'two'")
    alice.execute("ALTER TYPE mood RENAME VALUE 'good' TO 'fine'")
    alice.execute("INSERT INTO notes VALUES (2, 'two', 'fine', '{bad,fine}')")
    connection.execute("UPDATE loracomp.declaration SET scanned_at = now() - interval '2 days'")
    keep(connection)
    assert "has no value" in value(alice, "SELECT state FROM loracomp.list_answers()")
    alice.execute("SELECT loracomp.alter_answers('says', filter => %s)", [wanted[0].replace("good", "fine")])
    assert answer_all(connection) == ["two"]
    assert shown(alice, "says") == {1: ("answered", "one"), 2: ("answered", "two")}
    assert value(alice, "SELECT correct FROM says WHERE id = 1") == "two"


def test_a_primary_key_that_its_partitions_do_not_have_is_none(alice: Connection) -> None:
    alice.execute("CREATE TABLE notes (id integer NOT NULL, t text) PARTITION BY RANGE (id)")
    alice.execute("CREATE TABLE notes_1 PARTITION OF notes FOR VALUES FROM (0) TO (10)")
    alice.execute("ALTER TABLE ONLY notes ADD PRIMARY KEY (id)")
    with pytest.raises(errors.InvalidTableDefinition, match="notes has no primary key"):
        alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")


def test_a_listener_learns_of_a_refused_row(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("LISTEN loracomp_answers")
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, NULL, NULL)")
    assert ask(connection) == {}
    assert [each.payload for each in alice.notifies(timeout=20, stop_after=1)] == ["public.urgency"]
    assert shown(alice) == {1: ("refused", None)}


def test_a_backfill_goes_on_behind_jobs_of_a_base_model_that_is_no_more_the_default(
    connection: Connection, alice: Connection
) -> None:
    alice.execute("INSERT INTO tickets SELECT i, 'a', 'b' FROM generate_series(1, 500) AS i")
    alice.execute(URGENCY)
    asked = "SELECT count(*) FROM loracomp.job"
    ask(connection)
    assert value(connection, asked) == 200, "the queue stays short"
    connection.execute("UPDATE loracomp.base_model SET is_default = false")
    add_base_model(connection, "newer")
    ask(connection)
    assert value(connection, asked) == 400


def test_a_full_queue_fails_no_statement_and_is_filled_again(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    connection.execute("SELECT loracomp.set_queue_limits(per_submitter => 30)")
    refused = "SELECT (last_value, is_called)::text FROM loracomp.refused_inserts"
    before = value(connection, refused)
    try:
        alice.execute("INSERT INTO tickets (id, subject, body) SELECT i, 'a', 'b' FROM generate_series(1, 50) AS i")
        first = len(ask(connection))
        assert 25 <= first <= 30, "all 50 have no room"
        assert "at most 30 of" in value(alice, "SELECT state FROM loracomp.list_answers()")
        asked = first
        for _ in range(4):
            connection.execute("UPDATE loracomp.declaration SET retry_at = '-infinity'")
            asked += len(ask(connection))
        assert asked == 50
        assert value(connection, refused) == before, "the keeper's tries are no refused statements"
        gaps = "SELECT max(place) - min(place) + 1 - count(*) FROM loracomp.job WHERE NOT background"
        assert value(connection, gaps) == 0, "they cost no place"
    finally:
        connection.execute("SELECT loracomp.set_queue_limits(per_submitter => NULL)")


def test_init_keeps_view_grants_and_owner(connection: Connection, alice: Connection, database: str) -> None:
    alice.execute(URGENCY)
    alice.execute(f"GRANT SELECT ON urgency TO {login('ana')}".encode())
    alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
    schema.initialize(database, again=True)
    assert answer_all(connection) == ["Ticket: a one"]
    with connect(database, "ana") as ana:
        assert shown(ana) == {1: ("answered", "one")}
    alice.execute("UPDATE tickets SET body = 'two'")
    assert answer_all(connection) == ["Ticket: a two"]


def test_init_after_a_restore_renews_what_a_declaration_is_read_with(
    connection: Connection, alice: Connection, database: str
) -> None:
    """Before any worker has seen the restored table."""
    alice.execute(URGENCY)
    part = value(connection, "SELECT format('loracomp_parts.read_%s', id) FROM loracomp.declaration")
    settings = f"SELECT proconfig FROM pg_proc WHERE oid = '{part}'::regproc"
    now = value(connection, settings)
    connection.execute(f"ALTER FUNCTION {part} RESET bytea_output".encode())  # as an earlier release's would be
    connection.execute("UPDATE loracomp.declaration SET source_identity = 'another'")
    schema.initialize(database, again=True)
    assert value(connection, settings) == now


def test_a_statement_does_not_fail_while_the_schema_is_replaced(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(URGENCY)
    with db.connect(database) as installer, installer.transaction():
        installer.execute("LOCK TABLE loracomp.answer_hint IN ACCESS EXCLUSIVE MODE")
        alice.execute("INSERT INTO tickets (id, subject, body) VALUES (1, 'a', 'one')")
    assert answer_all(connection) == ["Ticket: a one"], "what was missed is found by a look at all rows"
    assert answer_all(connection) == []


def test_a_dump_keeps_declarations(
    connection: Connection, alice: Connection, database: str, server: str, programs: Path, tmp_path: Path
) -> None:
    alice.execute(
        "DROP TABLE tickets; CREATE TABLE tickets (gone text, id bigint PRIMARY KEY, subject text, body text)"
    )
    alice.execute("ALTER TABLE tickets DROP COLUMN gone")
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one'), (2, 'a', 'two')")
    alice.execute("CREATE TABLE notes (id integer PRIMARY KEY, t text)")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    answer_all(connection)
    (*_, last) = feed(alice)
    alice.execute("INSERT INTO tickets VALUES (10, 'a', 'six')")
    answer_all(connection)
    alice.execute("ALTER TABLE notes RENAME t TO words")  # which nobody sees before the dump
    alice.execute("UPDATE tickets SET body = 'three' WHERE id = 2")
    name = f"restored_{os.getpid()}"
    subprocess.run([programs / "pg_dump", "-Fc", "-f", tmp_path / "dump", database], check=True)
    url = create_database(server, name)
    try:
        restore = [programs / "pg_restore", "--exit-on-error", "--dbname", url, tmp_path / "dump"]
        subprocess.run(restore, check=True)
        with db.connect(url) as restored, connect(url, "alice") as again:
            assert shown(again) == {1: ("answered", "one"), 2: ("stale", "two"), 10: ("answered", "six")}
            listed = again.execute("SELECT key[1] FROM loracomp.list_answer_rows('urgency')").fetchall()
            assert [row["key"] for row in listed] == ["1", "2", "10"]
            restored.execute("UPDATE loracomp.declaration SET hints_from = 10 ^ 12")  # the other server's transactions
            again.execute("INSERT INTO tickets VALUES (3, 'a', 'four')")
            assert answer_all(restored) == ["Ticket: a three", "Ticket: a four"]
            assert {row["answer"] for row in feed(again, last["cursor"])} >= {"three", "four", "six"}
            state = "SELECT state FROM loracomp.list_answers('says')"
            assert value(again, state) == "column t was dropped: give another prompt by alter_answers"
            again.execute("SELECT loracomp.alter_answers('says', prompt => '{words}')")
            again.execute("INSERT INTO notes VALUES (1, 'five')")
            assert answer_all(restored) == ["five"]
    finally:
        drop_database(server, name)


def test_an_owner_who_is_no_superuser_needs_the_tables_owner(server: str, template: str, logins: None) -> None:
    owner, name = f"owner_{os.getpid()}", f"owned_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as cluster:
        cluster.execute(f"CREATE ROLE {owner} LOGIN".encode())
        create_database(server, name)
        cluster.execute(f"ALTER DATABASE {name} OWNER TO {owner}".encode())
        with psycopg.connect(url_of(server, name)) as inside:
            inside.execute("CREATE EXTENSION vector")
        url = url_of(server, name, user=owner)
        schema.initialize(url)
        try:
            with db.connect(url) as ours, as_alice(url_of(server, name)) as alice:
                add_base_model(ours)
                alice.execute(TICKETS)
                with pytest.raises(errors.InsufficientPrivilege, match="may not act as"):
                    alice.execute(URGENCY)
                cluster.execute(f"GRANT {login('alice')} TO {owner}".encode())
                alice.execute(URGENCY)
                alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one')")
                assert answer_all(ours) == ["Ticket: a one"]
                assert shown(alice) == {1: ("answered", "one")}
                schema.initialize(url, again=True)
                alice.execute("ALTER TABLE tickets RENAME body TO words")
                alice.execute("UPDATE tickets SET words = 'two'")
                assert answer_all(ours) == ["Ticket: a two"]
        finally:
            drop_database(server, name)
            cluster.execute(f"DROP ROLE {owner}".encode())


def test_a_declaration_in_trouble_is_tried_again_after_the_clock_went_back(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY)
    answer_all(connection)
    connection.execute("UPDATE loracomp.declaration SET trouble = 'some', retry_at = now() + interval '1 year'")
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one')")
    assert answer_all(connection) == ["Ticket: a one"]
    connection.execute("UPDATE loracomp.declaration SET scanned_at = now() + interval '1 year'")
    alice.execute("ALTER TABLE tickets ALTER body TYPE text USING 'two'")
    assert answer_all(connection) == ["Ticket: a two"]


def test_trouble_that_is_over_is_not_shown(connection: Connection, alice: Connection) -> None:
    """Although there is nothing to ask."""
    alice.execute(URGENCY)
    answer_all(connection)
    alice.execute('ALTER TABLE tickets RENAME body TO "{"')
    keep(connection)
    assert "has a name with a brace" in value(alice, "SELECT state FROM loracomp.list_answers()")
    alice.execute('ALTER TABLE tickets RENAME "{" TO body')
    connection.execute("UPDATE loracomp.declaration SET retry_at = '-infinity'")
    keep(connection)
    assert value(alice, "SELECT state FROM loracomp.list_answers()") == "ready"


def test_a_refused_row_shows_nothing_of_its_old_answer(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one')")
    answer_all(connection, choice_scores=[-1.0, -2.0])
    alice.execute("UPDATE tickets SET subject = '', body = ''")
    answer_all(connection)
    shows = "SELECT num_nonnulls(answer, confidence, answered_by, answered_at) FROM urgency WHERE status = 'refused'"
    assert value(alice, shows) == 0
    assert feed(alice)[0]["confidence"] is None


def test_what_becomes_of_a_job_is_shown(connection: Connection, alice: Connection) -> None:
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one'), (2, 'a', 'two'), (3, 'a', 'three')")
    cancelled, retried, erased = ask(connection)
    connection.execute("SELECT loracomp.cancel_jobs(ids => %s)", [[cancelled, retried]])
    alice.execute("SELECT loracomp.retry_job(%s)", [retried])
    alice.execute("SELECT loracomp.erase_jobs(ids => %s)", [[erased]])
    keep(connection)
    assert {key: row[0] for key, row in shown(alice).items()} == {1: "failed", 2: "waiting", 3: "refused"}
    answer_all(connection)
    connection.execute("SELECT loracomp.purge_jobs('0 days', force => true)")
    assert statuses(connection) == {}
    assert shown(alice)[2] == ("answered", "two")


def test_an_answer_is_shown_although_taking_it_was_undone(connection: Connection, alice: Connection) -> None:
    """This happens if the server stops before the commit. A sequence keeps what the transaction wrote into it."""
    alice.execute(URGENCY)
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one')")
    answered = keep_and_claim(connection)
    record(
        connection,
        {job.id: job.lease_token for job in answered},
        [{"job_id": job.id, "output": "urgent", "adapter_sha256": []} for job in answered],
    )
    for _ in range(101):  # so that the sequence is due to move on
        connection.execute("SELECT pg_current_xact_id()")
    for _ in range(2):
        with connection.transaction(force_rollback=True):
            assert value(connection, "SELECT loracomp.take_answers()") == 1
    keep(connection)
    assert shown(alice) == {1: ("answered", "urgent")}
    assert not value(connection, "SELECT loracomp.rows_wait()")


def test_without_backfill_rows_are_asked_once_they_change(connection: Connection, alice: Connection) -> None:
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one'), (2, 'a', 'two')")
    alice.execute(URGENCY.replace("}')", "}', backfill => false)"))
    alice.execute("INSERT INTO tickets VALUES (3, 'a', 'three')")
    assert answer_all(connection) == ["Ticket: a three"]
    connection.execute("UPDATE loracomp.declaration SET scanned_at = now() - interval '25 hours'")
    alice.execute("UPDATE tickets SET body = 'four' WHERE id = 2")
    assert answer_all(connection) == ["Ticket: a four"]
    assert shown(alice) == {1: ("skipped", None), 2: ("answered", "four"), 3: ("answered", "three")}
    assert value(alice, "SELECT reason FROM urgency WHERE id = 1") == "it was there before the declaration"
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    alice.execute("SELECT loracomp.alter_answers('urgency', descriptions => '{now,later}')")
    assert len(answer_all(connection)) == 3, "the corrected row too, because its correction goes with a job's prompt"
    assert value(alice, "SELECT correct FROM urgency WHERE id = 1") == "urgent"
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    assert len(answer_all(connection)) == 3


def test_another_prompt_asks_no_row_that_was_skipped(connection: Connection, alice: Connection) -> None:
    alice.execute("INSERT INTO tickets VALUES (1, 'a', 'one'), (2, 'a', 'two')")
    alice.execute(URGENCY.replace("}')", "}', backfill => false)"))
    alice.execute("INSERT INTO tickets VALUES (3, 'a', 'three')")
    answer_all(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'Now {body}')")
    assert answer_all(connection) == ["Now three"]
    alice.execute("UPDATE tickets SET body = 'four' WHERE id = 2")
    assert answer_all(connection) == ["Now four"]
    assert shown(alice) == {1: ("skipped", None), 2: ("answered", "four"), 3: ("answered", "three")}


def test_a_declaration_that_is_altered_at_once_still_skips_rows(connection: Connection, alice: Connection) -> None:
    """The alteration begins the first scan anew, of which some pages may have been read."""
    alice.execute("INSERT INTO tickets SELECT i, 'a', 'old' FROM generate_series(1, 300) AS i")
    alice.execute(URGENCY.replace("}')", "}', backfill => false)"))
    connection.execute("SELECT loracomp.ask_rows()")
    alice.execute("UPDATE tickets SET body = 'new' WHERE id IN (1, 299)")
    connection.execute("SELECT loracomp.ask_rows()")
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => '{body}')")
    assert not any("old" in prompt for prompt in answer_all(connection))
    assert value(alice, "SELECT count(*) FROM urgency WHERE status = 'skipped'") == 298
    assert {*shown(alice).values()} == {("skipped", None), ("answered", "new")}
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    assert len(answer_all(connection)) == 300


def test_a_view_stands_in_any_schema(connection: Connection, alice: Connection) -> None:
    connection.execute(f'CREATE SCHEMA "My schema" AUTHORIZATION {login("alice")}'.encode())
    alice.execute('CREATE TABLE "My schema".notes (id integer PRIMARY KEY, t text)')
    alice.execute("""SELECT loracomp.create_answers('says', '"My schema".notes', '{t}')""")
    alice.execute("""SELECT loracomp.create_answers('public.too', '"My schema".notes', 'again {t}')""")
    alice.execute("""INSERT INTO "My schema".notes VALUES (1, 'x')""")
    assert sorted(answer_all(connection)) == ["again x", "x"]
    assert shown(alice, '"My schema".says') == shown(alice, "public.too") == {1: ("answered", "x")}
    with pytest.raises(errors.InsufficientPrivilege, match="may not create a view in schema loracomp"):
        alice.execute("""SELECT loracomp.create_answers('loracomp.says', '"My schema".notes', '{t}')""")


A_MINUTE_LATER = "UPDATE loracomp.declaration SET parts_at = now() - interval '61 seconds'"


def test_a_partition_that_comes_or_goes_is_noticed_within_a_minute(connection: Connection, alice: Connection) -> None:
    alice.execute(PARTED)
    for at in (0, 10):
        alice.execute(PARTITION.format(at, at + 10).encode())
    alice.execute("INSERT INTO notes SELECT i, 'row ' || i FROM unnest('{1,10}'::int[]) AS i")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    assert answer_all(connection) == ["row 1", "row 10"]
    connection.execute(A_MINUTE_LATER)
    assert answer_all(connection) == []
    assert value(connection, "SELECT parts_at > now() - interval '1 minute' AND scan IS NULL FROM loracomp.declaration")
    feed = "SELECT array_agg(key) FROM loracomp.answers_since('says')"

    alice.execute("DROP TABLE notes_0")
    assert answer_all(connection) == []
    assert value(alice, feed) is None, "another answer is held back until the keeper has found that the row is gone"
    connection.execute(A_MINUTE_LATER)
    assert answer_all(connection) == []
    assert value(alice, feed) == [["10"]]
    assert value(alice, "SELECT rows FROM loracomp.list_answers()") == 1

    alice.execute("CREATE TABLE more (LIKE notes INCLUDING ALL); INSERT INTO more VALUES (1, 'one')")
    alice.execute("ALTER TABLE notes ATTACH PARTITION more FOR VALUES FROM (0) TO (10)")
    connection.execute(A_MINUTE_LATER)
    assert answer_all(connection) == ["one"]
    alice.execute("UPDATE more SET t = 'two'")
    assert answer_all(connection) == ["two"], "a statement may name a partition"

    alice.execute("ALTER TABLE notes DETACH PARTITION more; INSERT INTO more VALUES (2, 'new')")
    assert answer_all(connection) == []
    alice.execute("ALTER TABLE notes ATTACH PARTITION more FOR VALUES FROM (0) TO (10)")
    connection.execute(A_MINUTE_LATER)
    assert answer_all(connection) == ["new"], "it was written while the partition was detached"


def test_a_part_of_a_partition_is_noticed_and_other_tables_are_not_looked_at(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(URGENCY)
    alice.execute(PARTED)
    alice.execute(PARTITION.format(0, 10).encode() + b" PARTITION BY RANGE (id)")
    alice.execute("CREATE TABLE few PARTITION OF notes_0 FOR VALUES FROM (0) TO (5); INSERT INTO notes VALUES (1, 'a')")
    alice.execute("SELECT loracomp.create_answers('says', 'notes', '{t}')")
    assert answer_all(connection) == ["a"]
    alice.execute("DROP TABLE few")
    connection.execute(A_MINUTE_LATER)
    due = "SELECT array_agg(a.view::text) FROM loracomp.due_declarations() JOIN loracomp.declaration AS a USING (id)"
    assert value(connection, due) == ["says"]
    assert answer_all(connection) == []
    assert value(connection, "SELECT count(*) FROM loracomp.answer_row") == 0
    assert value(connection, due) is None


def test_the_view_looks_rows_up_by_key_and_pages_keep_the_queue_short(
    connection: Connection, alice: Connection
) -> None:
    alice.execute("INSERT INTO tickets SELECT i, 'a', 'b' FROM generate_series(1, 3000) AS i")
    alice.execute("ANALYZE tickets")
    alice.execute(URGENCY)
    assert len(claim(connection, 8)) == 8
    assert Counter(statuses(connection).values()) == {"queued": 192, "running": 8}
    alice.execute("INSERT INTO tickets VALUES (4000, 'new', 'one')")
    assert claim(connection, 8)[0].prompt == "Ticket: new one"
    for _ in range(20):
        claim(connection, 8)
    assert Counter(statuses(connection).values())["queued"] <= 300
    connection.execute("ANALYZE loracomp.answer_row")
    plan = "\n".join(row["QUERY PLAN"] for row in alice.execute("EXPLAIN SELECT * FROM urgency WHERE id = 17"))
    assert "tickets_pkey" in plan and "a_row_has_one_answer" in plan and "Seq Scan on tickets" not in plan
    assert "Index Cond: ((declaration_id = " in plan and "AND (key = " in plan, plan


def test_real_workers_and_writers_at_once(connection: Connection, alice: Connection, database: str) -> None:
    """Writers meet on the same rows. A worker that polls once in ten seconds is woken by what they write."""
    alice.execute("SELECT loracomp.create_answers('said', 'tickets', 'say {subject} {body}', max_new_tokens => 5)")

    def write(seed: int) -> None:
        drawn = random.Random(seed)
        with connect(database, "alice") as writer:
            for _ in range(50):
                row = {"id": drawn.randrange(12), "body": drawn.choice("xyz")}
                writer.execute(drawn.choice(WRITES).encode(), row)

    with working(database, listen=True, poll_s=10), working(database, listen=True, poll_s=10):
        with ThreadPoolExecutor(2) as writers:
            list(writers.map(write, (1, 2)))
        wait_until(lambda: open_states(alice) == {"answered"})
    expected = {
        row["id"]: ("answered", f"SAY A {row['body'].upper()}") for row in alice.execute("SELECT * FROM tickets")
    }
    assert expected and shown(alice, "said") == expected
    assert set(statuses(connection).values()) <= {"succeeded"}
    assert value(connection, "SELECT count(*) FROM loracomp.answer_row") == len(expected)


WRITES = (
    "INSERT INTO tickets VALUES (%(id)s, 'a', %(body)s) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
    "INSERT INTO tickets VALUES (%(id)s, 'a', %(body)s) ON CONFLICT (id) DO NOTHING",
    "UPDATE tickets SET body = %(body)s WHERE id = %(id)s",
    "DELETE FROM tickets WHERE id = %(id)s",
)


def open_states(connection: Connection) -> set[str]:
    return {status for status, _ in shown(connection, "said").values()}
