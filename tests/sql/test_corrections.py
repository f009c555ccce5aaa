"""Corrections of a declaration: labelled examples that are measured, and answer its later rows."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import pytest
from psycopg import errors

from answers_data import (
    ADD_TICKETS,
    EMBED,
    TICKETS,
    UNEMBEDDED,
    URGENCY,
    answer_all,
    as_alice,
    keep,
    record_measured,
    shown,
    tidy,
    work,
)
from job_data import BASE, claim, record, wait_for_a_lock
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from people_fixtures import connect, login, value
from routing_data import add_adapter

CORRECT = (
    "UPDATE urgency SET correct = CASE WHEN id %% 2 = 0 THEN 'urgent' ELSE 'not urgent' END WHERE id BETWEEN %s AND %s"
)
LABELLED = """
SELECT e.prompt, e.label, e.choices, t.reader_role
FROM loracomp.example AS e JOIN loracomp.task AS t ON t.id = e.task_id
WHERE t.name LIKE 'answers/%%' ORDER BY e.prompt, e.label
"""


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """She has declared urgency over six tickets, and they are answered."""
    connection.execute("SELECT loracomp.add_task('tea')")
    add_adapter(connection, "tea", base_model=BASE)
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        opened.execute(URGENCY)
        opened.execute(ADD_TICKETS, [1, 6])
        work(connection)
        yield opened
    tidy(connection)


def labelled(owner: Connection) -> list[tuple[str, str]]:
    keep(owner)  # which deletes examples that no row has any more
    return [(row["prompt"], row["label"]) for row in owner.execute(LABELLED)]


def jobs(owner: Connection, kind: str) -> int:
    return value(owner, "SELECT count(*) FROM loracomp.job WHERE kind = %s", [kind])


def listed(person: Connection) -> dict[str, Any]:
    (row,) = person.execute("SELECT * FROM loracomp.list_answers()")
    return row


# The example of a correction


def test_a_correction_is_a_labelled_example_until_it_is_taken_back(connection: Connection, alice: Connection) -> None:
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 1")
    (row,) = connection.execute(LABELLED)
    assert row == {
        "prompt": "Ticket: row 1 wrong",
        "label": "not urgent",
        "choices": ["urgent", "not urgent"],
        "reader_role": login("alice"),
    }
    alice.execute("SELECT loracomp.correct_answer('urgency', 1, 'urgent')")
    assert labelled(connection) == [("Ticket: row 1 wrong", "urgent")]
    alice.execute("UPDATE urgency SET correct = NULL WHERE id = 1")
    assert labelled(connection) == []


def test_rows_with_the_same_prompt_share_an_example(connection: Connection, alice: Connection) -> None:
    alice.execute("UPDATE tickets SET subject = 'same'")
    work(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id < 3")
    assert labelled(connection) == [("Ticket: same wrong", "urgent")]
    alice.execute("UPDATE urgency SET correct = NULL WHERE id = 1")
    assert labelled(connection) == [("Ticket: same wrong", "urgent")]
    alice.execute("DELETE FROM tickets WHERE id = 2")
    work(connection)
    assert labelled(connection) == []


def test_an_example_goes_with_its_row_and_with_its_prompt(connection: Connection, alice: Connection) -> None:
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id < 4")
    alice.execute("UPDATE tickets SET seen = 1")
    alice.execute("DELETE FROM tickets WHERE id = 1")
    alice.execute("UPDATE tickets SET body = 'other' WHERE id = 2")
    work(connection)
    assert labelled(connection) == [("Ticket: row 3 wrong", "urgent")]
    corrected = alice.execute("SELECT id, correct FROM urgency WHERE id IN (2, 3) ORDER BY id").fetchall()
    assert [row["correct"] for row in corrected] == [None, "urgent"]
    alice.execute("SELECT loracomp.drop_answers('urgency')")
    assert labelled(connection) == []
    assert value(connection, "SELECT array_agg(name) FROM loracomp.task") == ["tea"]


def test_corrections_keep_up_with_other_words_and_choices(connection: Connection, alice: Connection) -> None:
    alice.execute(CORRECT, [1, 4])
    alice.execute(
        "SELECT loracomp.alter_answers('urgency', prompt => 'Is {subject} urgent?', choices => '{urgent,so so}')"
    )
    work(connection)
    corrected = {row["id"]: row["correct"] for row in alice.execute("SELECT id, correct FROM urgency ORDER BY id")}
    assert corrected == {1: None, 2: "urgent", 3: None, 4: "urgent", 5: None, 6: None}
    assert labelled(connection) == [("Is row 2 urgent?", "urgent"), ("Is row 4 urgent?", "urgent")]


def test_what_is_no_choice_is_refused_and_leaves_no_example(connection: Connection, alice: Connection) -> None:
    with pytest.raises(errors.CheckViolation, match="correct must be one of the choices, and is perhaps"):
        alice.execute("UPDATE urgency SET correct = 'perhaps' WHERE id = 1")
    assert labelled(connection) == []


def test_nobody_else_may_use_or_see_the_examples(connection: Connection, alice: Connection) -> None:
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    with connection.transaction():
        connection.execute(f"SET LOCAL ROLE {login('bob')}".encode())
        assert (
            value(connection, "SELECT count(*) FROM loracomp.readable_tasks() AS t WHERE t::text LIKE '%answers/%'")
            == 0
        )
        for statement in (
            "SELECT * FROM loracomp.rows_to_correct('urgency')",
            "SELECT loracomp.drop_answers('urgency')",
        ):
            with pytest.raises(errors.NoDataFound, match="is not a declaration of yours"), connection.transaction():
                connection.execute(statement.encode())
        with pytest.raises(errors.InsufficientPrivilege), connection.transaction():
            connection.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 2")


WRITING = {
    "bytea_output": "escape", "datestyle": "SQL, DMY", "extra_float_digits": "-15", "intervalstyle": "sql_standard",
    "quote_all_identifiers": "on", "timezone": "Asia/Kathmandu",
}  # fmt: skip
"""Settings that decide how values are written. lc_monetary is one too, but a test server may have only the locale C."""


@pytest.mark.parametrize("setting", WRITING)
def test_a_corrections_prompt_is_written_alike_in_every_session(
    connection: Connection, alice: Connection, setting: str
) -> None:
    """Otherwise it would be taken for the correction of another prompt, and deleted."""
    alice.execute("CREATE TYPE file AS (name text, content bytea)")
    alice.execute(
        "CREATE TABLE notes (id integer PRIMARY KEY, file file DEFAULT ('x', 'y'), of regclass DEFAULT 'tickets',"
        " share double precision DEFAULT 0.1::float8 + 0.2, at timestamptz DEFAULT now(),"
        " every interval DEFAULT '2 days')"
    )
    alice.execute("INSERT INTO notes VALUES (1)")
    alice.execute(
        "SELECT loracomp.create_answers('says', 'notes', 'P {file} {of} {share} {at} {every}',"
        " choices => '{urgent,late}')"
    )
    answer_all(connection, "urgent")
    alice.execute("SELECT set_config(%s, %s, false)", [setting, WRITING[setting]])
    alice.execute("UPDATE says SET correct = 'late'")
    alice.execute("SELECT loracomp.alter_answers('says', prompt => 'Q {file} {of} {share} {at} {every}')")
    answer_all(connection, "urgent")
    assert value(alice, "SELECT correct FROM says") == "late"


def test_rows_that_wait_fail_no_correction_of_others(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 8])
    assert alice.execute("UPDATE urgency SET correct = 'urgent'").rowcount == 6
    with pytest.raises(errors.NoDataFound, match="urgency has no row 7 that can be corrected"):
        alice.execute("SELECT loracomp.correct_answer('urgency', 7, 'urgent')")
    assert len(labelled(connection)) == 6


@pytest.mark.parametrize("text", ["", " \n", "\u00a0", "x" * 4001])
def test_a_text_that_cannot_be_measured_is_no_correction(connection: Connection, alice: Connection, text: str) -> None:
    """Its measurement failed in each worker, or kept one busy for minutes."""
    alice.execute("SELECT loracomp.create_answers('said', 'tickets', '{body}')")
    work(connection)
    with pytest.raises(errors.CheckViolation, match="correct must be a text of 1 to 4000 characters that is not blank"):
        alice.execute("UPDATE said SET correct = %s WHERE id = 1", [text])
    alice.execute("UPDATE said SET correct = %s WHERE id = 1", ["x" * 4000])
    alice.execute("UPDATE said SET correct = NULL WHERE id = 1")


def test_an_erased_example_takes_the_corrections_with_it(connection: Connection, alice: Connection) -> None:
    alice.execute("UPDATE tickets SET subject = 'same' WHERE id < 3")
    work(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id < 4")
    erased = (
        "SELECT what, rows FROM loracomp.erase_example((SELECT id FROM loracomp.example WHERE prompt LIKE '%same%'))"
    )
    report = {row["what"]: row["rows"] for row in connection.execute(erased)}
    assert report["corrections cleared, which it was made from"] == 2
    corrected = {row["id"]: row["correct"] for row in alice.execute("SELECT id, correct FROM urgency WHERE id < 4")}
    assert corrected == {1: None, 2: None, 3: "urgent"}
    assert labelled(connection) == [("Ticket: row 3 wrong", "urgent")]
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    assert ("Ticket: same wrong", "urgent") in labelled(connection)


# What is learnt from corrections


def test_eight_corrections_are_measured_and_sixteen_answer(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 20])
    work(connection)
    alice.execute(CORRECT, [1, 7])
    assert work(connection) == []
    alice.execute(CORRECT, [8, 9])
    assert [job.kind for job in work(connection)] == ["measure"] * 9
    owners = "SELECT array_agg(DISTINCT submitted_by) FROM loracomp.job WHERE kind = 'measure'"
    assert value(connection, owners) == [login("alice")]
    alice.execute(ADD_TICKETS, [21, 21])
    work(connection)
    assert value(alice, "SELECT answered_by FROM urgency WHERE id = 21") == "base"
    alice.execute(CORRECT, [10, 16])
    done = work(connection)
    assert sorted(job.kind for job in done) == ["measure"] * 7 + ["predict"] * 16, "the corrected rows are asked again"
    alice.execute(ADD_TICKETS, [22, 22])
    assert len(work(connection)) == 1
    answered_by = {row["id"]: row["answered_by"] for row in alice.execute("SELECT id, answered_by FROM urgency")}
    assert answered_by == {**dict.fromkeys(range(1, 23), "16 corrections"), **dict.fromkeys(range(17, 22), "base")}
    assert len(labelled(connection)) == 16
    alice.execute(CORRECT, [22, 22])
    assert [job.kind for job in work(connection)] == ["measure"], "no corrected row is asked a third time"
    add_adapter(connection, listed(alice)["task"], base_model=BASE)
    alice.execute(ADD_TICKETS, [23, 23])
    work(connection)
    assert value(alice, "SELECT answered_by FROM urgency WHERE id = 23") == "base", "by the declaration's policy again"


def test_corrected_rows_are_asked_again_if_the_policy_is_measured_too(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(ADD_TICKETS, [7, 20])
    work(connection)
    connection.execute("UPDATE loracomp.answer_row SET draw_number = 1")
    alice.execute("SELECT loracomp.alter_answers('urgency', policy => 'measured')")
    alice.execute("UPDATE urgency SET correct = 'urgent'")
    work(connection)
    assert listed(alice)["after"] == "100 % (84 to 100, 20 rows)"


def test_corrections_are_measured_again_if_choices_become_texts(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 17])
    alice.execute(CORRECT, [1, 6])
    work(connection)
    alice.execute(CORRECT, [7, 16])
    work(connection)
    answered_by = "SELECT array_agg(DISTINCT answered_by) FROM urgency WHERE id < 17"
    assert value(alice, answered_by) == ["16 corrections"]
    connection.execute("SELECT loracomp.add_example('tea', 'Sum up: tea is hot.', 'Hot tea.')")  # so it writes, too
    alice.execute("SELECT loracomp.alter_answers('urgency', max_new_tokens => 5)")
    assert value(connection, "SELECT loracomp.ask_rows()") == 16
    assert value(connection, "SELECT count(*) FROM loracomp.measurement") == 0, "they are of another question"
    done = [(job.kind, job.choices) for job in work(connection)]
    assert sorted(done, key=str) == [("measure", None)] * 16 + [("predict", None)] * (17 + 16)
    assert value(alice, answered_by) == ["16 corrections"]


def test_corrected_texts_are_not_measured_on_adapters_that_only_choose(
    connection: Connection, alice: Connection
) -> None:
    alice.execute("SELECT loracomp.create_answers('said', 'tickets', '{body}')")
    alice.execute(ADD_TICKETS, [7, 16])
    work(connection)
    alice.execute("UPDATE said SET correct = 'row ' || id")
    work(connection)
    assert jobs(connection, "measure") == 0
    assert not value(connection, "SELECT loracomp.rows_wait()")
    connection.execute("SELECT loracomp.add_example('tea', 'Sum up: tea is hot.', 'Hot tea.')")
    connection.execute("UPDATE loracomp.declaration SET measure_at = measure_at - interval '1 minute'")
    work(connection)
    assert jobs(connection, "measure") == 16


def test_a_full_queue_does_not_hold_up_embeddings(connection: Connection, database: str, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 9])
    work(connection)
    alice.execute(CORRECT, [1, 8])
    connection.execute("SELECT loracomp.set_queue_limits(per_submitter => 2)")
    with connect(database, "wendy") as worker:
        ids = value(connection, UNEMBEDDED)
        assert value(worker, EMBED, {"ids": ids, "n": len(ids)}) == 8
    assert jobs(connection, "measure") == 0
    connection.execute("SELECT loracomp.set_queue_limits(NULL)")
    alice.execute(CORRECT, [9, 9])
    work(connection)
    assert jobs(connection, "measure") == 9, "the next correction brings all"


def test_corrections_that_take_longer_to_queue_than_the_keeper_waits_are_left_out(
    connection: Connection, database: str, alice: Connection
) -> None:
    alice.execute(ADD_TICKETS, [7, 8])
    work(connection)
    alice.execute(CORRECT, [1, 8])
    ids = value(connection, UNEMBEDDED)
    connection.execute(EMBED, {"ids": ids, "n": len(ids)})
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT FROM loracomp.base_model FOR UPDATE")
        connection.execute("SET statement_timeout = '2s'")
        assert value(connection, "SELECT loracomp.measure_corrections()") == 0
        connection.execute("SET statement_timeout = '20s'")
    assert value(connection, "SELECT measure_at > now() + interval '9 minutes' FROM loracomp.declaration")
    connection.execute("UPDATE loracomp.declaration SET measure_at = now()")
    assert value(connection, "SELECT loracomp.measure_corrections()") == 8


ISOLATION = ["READ COMMITTED", "REPEATABLE READ"]


@pytest.mark.parametrize("isolation", ISOLATION)
def test_an_example_that_another_correction_is_getting_stays(
    connection: Connection, database: str, alice: Connection, isolation: str
) -> None:
    alice.execute("UPDATE tickets SET subject = 'same' WHERE id < 3")
    work(connection)
    alice.execute(CORRECT, [2, 2])
    with connect(database, "alice") as other:
        other.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
        other.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
        alice.execute("SET lock_timeout = '20s'")
        alice.execute("UPDATE urgency SET correct = NULL WHERE id = 2")
        assert labelled(connection) == [("Ticket: same wrong", "urgent")]
        other.execute("COMMIT")
    assert labelled(connection) == [("Ticket: same wrong", "urgent")]
    alice.execute("UPDATE urgency SET correct = NULL WHERE id = 1")
    assert labelled(connection) == []


@pytest.mark.parametrize("isolation", ISOLATION)
def test_an_example_stays_as_long_as_any_row_has_it_whatever_a_withdrawal_sees(
    connection: Connection, database: str, alice: Connection, isolation: str
) -> None:
    alice.execute("UPDATE tickets SET subject = 'same' WHERE id < 3")
    work(connection)
    alice.execute(CORRECT, [2, 2])
    with connect(database, "alice") as other:
        other.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
        other.execute("SELECT FROM urgency")
        alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
        other.execute("UPDATE urgency SET correct = NULL WHERE id = 2")
        other.execute("COMMIT")
    assert labelled(connection) == [("Ticket: same wrong", "urgent")]
    alice.execute("UPDATE tickets SET subject = 'other' WHERE id = 1")
    work(connection)
    assert shown(alice)[1] == ("answered", "urgent")
    assert labelled(connection) == []


@pytest.mark.parametrize("isolation", ISOLATION)
def test_two_rows_that_lose_an_example_at_once_leave_none(
    connection: Connection, database: str, alice: Connection, isolation: str
) -> None:
    alice.execute("UPDATE tickets SET subject = 'same' WHERE id < 3")
    work(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id < 3")
    with connect(database, "alice") as other:
        for person in (alice, other):
            person.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
            person.execute("SET LOCAL lock_timeout = '20s'")
            person.execute("SELECT FROM urgency")
        alice.execute("UPDATE urgency SET correct = NULL WHERE id = 1")
        other.execute("UPDATE urgency SET correct = NULL WHERE id = 2")
        alice.execute("COMMIT")
        assert labelled(connection) == [("Ticket: same wrong", "urgent")]
        other.execute("COMMIT")
    assert labelled(connection) == []


def test_a_row_whose_example_is_gone_is_asked_and_deleted(connection: Connection, alice: Connection) -> None:
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id < 3")
    connection.execute("SELECT loracomp.delete_examples(name) FROM loracomp.task WHERE name LIKE 'answers/%'")
    alice.execute("UPDATE tickets SET subject = 'other' WHERE id = 1")
    alice.execute("DELETE FROM tickets WHERE id = 2")
    work(connection)
    assert shown(alice)[1] == ("answered", "urgent") and 2 not in shown(alice)
    assert not value(connection, "SELECT loracomp.rows_wait()")


def test_withdrawn_examples_of_a_paused_declaration_are_deleted_too(connection: Connection, alice: Connection) -> None:
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
    alice.execute("UPDATE urgency SET correct = NULL")
    assert labelled(connection) == []


def test_corrections_that_no_adapter_can_be_measured_on_keep_no_drain_waiting_and_no_worker_running(
    connection: Connection, alice: Connection
) -> None:
    connection.execute("UPDATE loracomp.adapter SET status = 'retired'")
    alice.execute(ADD_TICKETS, [7, 8])
    work(connection)
    alice.execute(CORRECT, [1, 8])
    work(connection)
    assert jobs(connection, "measure") == 0
    assert not value(connection, "SELECT loracomp.rows_wait()")
    connection.execute("UPDATE loracomp.job SET created_at = 'epoch', run_at = 'epoch'")
    connection.execute("UPDATE loracomp.declaration SET measure_at = now() - interval '50 minutes'")
    assert value(connection, "SELECT workers FROM loracomp.worker_demand()") == 0
    connection.execute("UPDATE loracomp.declaration SET measure_at = now() - interval '61 minutes'")
    assert value(connection, "SELECT workers FROM loracomp.worker_demand()") == 1, "an adapter may have come"
    connection.execute("UPDATE loracomp.adapter SET status = 'active'")
    work(connection)
    assert jobs(connection, "measure") == 8


@pytest.mark.parametrize("altered", ["prompt => 'Is {subject} {body}?'", "choices => '{urgent,so so}'"])
@pytest.mark.parametrize("paused", [False, True])
def test_a_correction_does_not_go_over_to_an_edited_text(
    connection: Connection, alice: Connection, altered: str, paused: bool
) -> None:
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id <= 2")
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => %s)", [paused])
    with alice.transaction():
        alice.execute("UPDATE tickets SET body = 'solved, thanks' WHERE id = 1")
        alice.execute(f"SELECT loracomp.alter_answers('urgency', {altered}, paused => false)")
    work(connection)
    assert alice.execute("SELECT id FROM urgency WHERE correct IS NOT NULL").fetchall() == [{"id": 2}]
    assert [(text.count("row 2"), label) for text, label in labelled(connection)] == [(1, "urgent")]


def test_a_row_that_is_stale_is_not_drawn(connection: Connection, alice: Connection) -> None:
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
    alice.execute("UPDATE tickets SET body = 'other' WHERE id = 1")
    drawn = "SELECT key FROM loracomp.rows_to_correct('urgency')"
    assert {row["key"][0] for row in alice.execute(drawn)} == {"2", "3", "4", "5", "6"}
    alice.execute("SELECT loracomp.alter_answers('urgency', choices => '{red,green}')")
    assert alice.execute(drawn).fetchall() == []


def test_rows_to_correct_are_drawn_and_stay_drawn(connection: Connection, alice: Connection) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="n must be between 1 and 10000, and is -1"):
        alice.execute("SELECT * FROM loracomp.rows_to_correct('urgency', -1)")
    first = alice.execute("SELECT * FROM loracomp.rows_to_correct('urgency', 4)").fetchall()
    assert [row["prompt"] for row in first] == [f"Ticket: row {row['key'][0]} wrong" for row in first]
    drawn = "SELECT array_agg(key ORDER BY key) FROM loracomp.answer_row WHERE draw_number IS NOT NULL"
    assert value(connection, drawn) == sorted(row["key"] for row in first)
    again = alice.execute("SELECT * FROM loracomp.rows_to_correct('urgency', 4)").fetchall()
    assert again == first
    for row in first:
        alice.execute("SELECT loracomp.correct_answer('urgency', %s, 'urgent')", [row["key"][0]])
    left = alice.execute("SELECT * FROM loracomp.rows_to_correct('urgency', 4)").fetchall()
    assert {row["key"][0] for row in left} == {"1", "2", "3", "4", "5", "6"} - {row["key"][0] for row in first}


def test_rows_drawn_by_transactions_that_do_not_see_each_other_have_an_order(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(ADD_TICKETS, [7, 60])
    work(connection)
    with connect(database, "alice") as other, other.transaction():
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        for session, seed in ((other, 0.1), (alice, 0.2)):  # so that they draw different rows
            session.execute("SELECT setseed(%s)", [seed])
        for session in (alice, other):
            session.execute("SELECT loracomp.rows_to_correct('urgency', 2)")
    drawn = "SELECT (count(draw_number), count(DISTINCT draw_number))::text FROM loracomp.answer_row"
    assert value(connection, drawn) == "(4,4)"


def test_an_open_draw_holds_up_no_rows(connection: Connection, alice: Connection, database: str) -> None:
    alice.execute("SET statement_timeout = '5s'")
    connection.execute("SET statement_timeout = '5s'")
    draw = "SELECT key FROM loracomp.rows_to_correct('urgency', 8)"
    with connect(database, "alice") as other, other.transaction():
        assert len(other.execute(draw).fetchall()) == 6
        with pytest.raises(errors.LockNotAvailable, match="has corrected or drawn one of the rows"):
            alice.execute(draw)
        alice.execute(ADD_TICKETS, [7, 8])
        assert len(claim(connection, 100)) == 2, "new rows are asked"
        alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
        alice.execute("SELECT loracomp.alter_answers('urgency', paused => false)")


def test_rows_that_others_have_drawn_are_passed_over_while_they_are_locked(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(ADD_TICKETS, [7, 700])
    work(connection)
    draw = "SELECT key FROM loracomp.rows_to_correct('urgency', %s)"
    drawn = {row["key"][0] for row in alice.execute(draw, [699])}
    with connect(database, "alice") as other, other.transaction():
        assert len(other.execute(draw, [699]).fetchall()) == 699
        alice.execute("SET statement_timeout = '5s'")
        (left,) = alice.execute(draw, [2])
    assert left["key"][0] not in drawn


def test_no_row_is_passed_over_because_somebody_just_corrects_it(
    connection: Connection, alice: Connection, database: str
) -> None:
    """Otherwise the sample lacked the wrong answers that somebody has found."""
    with connect(database, "alice") as other, other.transaction():
        other.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 3")
        with pytest.raises(errors.LockNotAvailable, match="has corrected or drawn one of the rows"):
            alice.execute("SELECT key FROM loracomp.rows_to_correct('urgency', 8)")
    assert len(alice.execute("SELECT key FROM loracomp.rows_to_correct('urgency', 8)").fetchall()) == 5


def test_before_counts_no_first_answer_to_what_was_asked_earlier(connection: Connection, alice: Connection) -> None:
    alice.execute("UPDATE urgency SET correct = 'not urgent'")
    alice.execute("SELECT loracomp.alter_answers('urgency', choices => '{urgent,never}')")
    work(connection, "never")
    alice.execute("UPDATE urgency SET correct = 'never'")
    assert listed(alice)["before"] == "6 of 6 picked rows right"


def test_a_row_that_is_edited_stays_drawn(connection: Connection, alice: Connection) -> None:
    drawn = alice.execute("SELECT key FROM loracomp.rows_to_correct('urgency', 2)").fetchall()
    ids = [int(row["key"][0]) for row in drawn]
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = ANY (%s)", [ids])
    alice.execute("UPDATE tickets SET body = 'other' WHERE id = %s", [ids[0]])
    work(connection)
    again = alice.execute("SELECT key FROM loracomp.rows_to_correct('urgency', 1)").fetchall()
    assert again == [{"key": [str(ids[0])]}]


@pytest.fixture
def member(connection: Connection, database: str, alice: Connection) -> Iterator[Connection]:
    """Bob, who is a member of alice's role."""
    connection.execute(f"GRANT {login('alice')} TO {login('bob')}".encode())
    try:
        with connect(database, "bob") as bob:
            yield bob
    finally:
        connection.execute(f"REVOKE {login('alice')} FROM {login('bob')}".encode())


@pytest.mark.parametrize(
    "call",
    [
        "correct_row('urgency', '{3}', 'urgent')",
        "try_prompts('tickets', '{body}')",
        "estimate_answers('tickets', '{body}')",
    ],
)
def test_what_a_member_leaves_open_holds_up_one_row_at_most(
    connection: Connection, alice: Connection, member: Connection, call: str
) -> None:
    with member.transaction():
        member.execute(f"SELECT * FROM loracomp.{call}".encode())
        alice.execute("SET statement_timeout = '5s'; ANALYZE tickets")
        alice.execute(ADD_TICKETS, [7, 8])
        assert len(claim(connection, 100)) == 2, "new rows are asked"
        alice.execute("SELECT loracomp.correct_row('urgency', '{2}', 'urgent')")


def test_a_correction_by_a_member_waits_until_autovacuum_gives_way(
    alice: Connection, member: Connection, database: str
) -> None:
    """It does after deadlock_timeout, which is a second, and pages wait for locks no longer than that."""
    member.execute("SET lock_timeout = '200ms'")
    correct = "SELECT loracomp.correct_row('urgency', '{3}', 'urgent')"
    with db.connect(database) as vacuum, ThreadPoolExecutor(1) as pool:
        with vacuum.transaction():
            vacuum.execute("LOCK TABLE public.tickets IN SHARE UPDATE EXCLUSIVE MODE")
            with pytest.raises(errors.LockNotAvailable, match=r"tickets is being vacuumed or analyzed, or gets an ind"):
                member.execute(correct)
            corrected = pool.submit(member.execute, correct)
            assert not wait([corrected], 0.7).done
        corrected.result(20)
    assert value(member, "SHOW lock_timeout") == "200ms"


def test_accuracy_before_and_after_is_that_of_drawn_rows(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 60])
    work(connection)
    before = listed(alice)
    assert (before["before"], before["after"]) == ("not yet known",) * 2
    # Twenty are drawn, ten of them answered rightly; those that people pick because they are wrong are counted apart.
    connection.execute("UPDATE loracomp.answer_row SET draw_number = 1 WHERE key[1]::int <= 20")
    alice.execute(CORRECT, [1, 20])
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id BETWEEN 41 AND 60")
    work(connection, "not urgent")
    alice.execute("SET extra_float_digits = -15")  # writes 30 as 3e+01
    row = listed(alice)
    assert (row["corrected"], row["before"]) == (40, "50 % (30 to 70, 20 rows); 0 of 20 picked rows right")
    assert row["after"] == "50 % (30 to 70, 20 rows); 20 of 20 picked rows right"
    assert row["task"].startswith("answers/public.urgency-")
    assert 10 <= row["per_minute"] <= 60 and row["time_left"] == row["time_left"] * 0
    assert row["advice"] is None


def test_accuracy_is_shown_from_the_first_corrected_row_on(connection: Connection, alice: Connection) -> None:
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    assert listed(alice)["before"] == "1 of 1 picked rows right"
    connection.execute("UPDATE loracomp.answer_row SET draw_number = 1")
    assert (listed(alice)["before"], listed(alice)["after"]) == ("100 % (21 to 100, 1 row)", "not yet known")


def measure_some(owner: Connection, n: int) -> list[Any]:
    """Embed the corrections, queue their measurements, and claim and record the first n jobs; returns the others."""
    ids = value(owner, UNEMBEDDED)
    owner.execute(EMBED, {"ids": ids, "n": len(ids)})
    keep(owner)
    jobs = claim(owner, 1000)
    record_measured(owner, jobs[:n])
    return list(jobs[n:])


def test_all_rows_are_answered_again_once_the_corrections_are_measured(
    connection: Connection, alice: Connection
) -> None:
    alice.execute(ADD_TICKETS, [7, 20])
    work(connection)
    alice.execute(CORRECT, [1, 16])
    assert listed(alice)["state"] == "measuring 0 of 16"
    left = measure_some(connection, 9)
    connection.execute("UPDATE loracomp.measurement SET measured_at = now() - interval '1 s'")
    connection.execute("UPDATE loracomp.job SET created_at = now() - interval '90 s' WHERE kind = 'measure'")
    # It began 90 s ago, or some more on a slow machine, and 7 of 16 are left.
    shown = re.fullmatch("measuring 9 of 16, about ([0-9]+) s", listed(alice)["state"])
    assert shown and 70 <= int(shown[1]) < 110
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    keep(connection)
    assert jobs(connection, "predict") == 20, "no row is asked by the old rule"
    assert re.fullmatch("measuring 9 of 16, about .+; then all rows are answered again", listed(alice)["state"])
    alice.execute(ADD_TICKETS, [21, 21])
    keep(connection)
    assert jobs(connection, "predict") == 21, "a new row doesn't wait"
    record_measured(connection, left)
    work(connection)
    answered_by = "SELECT array_agg(DISTINCT answered_by) FROM urgency WHERE id <= 20"
    assert (value(alice, answered_by), listed(alice)["state"]) == (["16 corrections"], "ready")


@pytest.mark.parametrize("trouble", ["failed", "late"])
def test_a_measurement_that_fails_or_takes_long_holds_up_no_answers(
    connection: Connection, alice: Connection, trouble: str
) -> None:
    alice.execute(ADD_TICKETS, [7, 20])
    work(connection)
    alice.execute(CORRECT, [1, 16])
    measure_some(connection, 15)
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    keep(connection)
    assert jobs(connection, "predict") == 20
    if trouble == "failed":
        connection.execute(
            "SELECT loracomp.cancel_job(id) FROM loracomp.job WHERE kind = 'measure' AND finished_at IS NULL"
        )
        assert listed(alice)["state"] == "scanning all rows"
    else:
        connection.execute("UPDATE loracomp.declaration SET waits_until = waits_until - interval '600 s'")
    keep(connection)
    assert jobs(connection, "predict") == 40


def test_the_time_left_of_a_very_large_table_fits_an_interval(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 60])
    work(connection)
    connection.execute("UPDATE loracomp.declaration SET scan = 'rows', is_first_scan = TRUE")
    connection.execute("UPDATE loracomp.answer_row SET answered_at = now() - interval '1 hour' WHERE key <> '{7}'")
    connection.execute("UPDATE pg_class SET reltuples = 1e12 WHERE oid = 'tickets'::regclass")
    assert listed(alice)["time_left"] == timedelta(days=36500)
    connection.execute("UPDATE loracomp.answer_row SET answered_at = now() - interval '1 hour'")
    assert listed(alice)["time_left"] is None


def test_a_declaration_of_any_name_has_a_task(alice: Connection) -> None:
    alice.execute("ALTER VIEW urgency RENAME TO other")
    alice.execute(URGENCY.replace("'urgency'", "E'\"a/../b\\nc\"'"))
    tasks = [row["task"] for row in alice.execute("SELECT task FROM loracomp.list_answers() ORDER BY task")]
    assert len(tasks) == 2 and tasks[0].startswith('answers/public."a_.._b_c"-'), tasks


def test_a_changed_row_is_not_drawn_and_its_first_answer_is_that_to_its_new_prompt(
    connection: Connection, alice: Connection
) -> None:
    """Otherwise all answers would be found wrong, although every answer is right."""
    alice.execute(ADD_TICKETS, [7, 25])
    work(connection, "urgent")
    drawn = alice.execute("SELECT * FROM loracomp.rows_to_correct('urgency', 25)").fetchall()
    assert len(drawn) == 25
    alice.execute("UPDATE tickets SET body = 'other' WHERE id <= 13")
    jobs = claim(connection, 100)
    assert len(jobs) == 13
    offered = alice.execute("SELECT * FROM loracomp.rows_to_correct('urgency', 25)").fetchall()
    assert {row["prompt"].split()[-1] for row in offered} == {"wrong"} and len(offered) == 12
    alice.execute("UPDATE urgency SET correct = CASE WHEN id <= 13 THEN 'not urgent' ELSE 'urgent' END")
    assert listed(alice)["before"] == "100 % (76 to 100, 12 rows)"
    tokens = {job.id: job.lease_token for job in jobs}
    record(connection, tokens, [{"job_id": job.id, "output": "not urgent", "adapter_sha256": []} for job in jobs])
    keep(connection)
    assert listed(alice)["before"] == "100 % (87 to 100, 25 rows)"


def test_a_row_that_changed_after_its_answer_is_corrected_as_it_now_is(
    connection: Connection, alice: Connection
) -> None:
    connection.execute("UPDATE loracomp.answer_row SET draw_number = 1")
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id <= 2")
    alice.execute("UPDATE tickets SET body = 'other' WHERE id <= 4")
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id <= 4")
    first = "SELECT array_agg(first_answer ORDER BY key) FROM loracomp.answer_row"
    assert value(connection, first) == [None] * 6, "nobody has asked in these words yet"
    work(connection, "not urgent")
    assert value(connection, first) == ["not urgent"] * 4 + [None] * 2


def test_before_counts_the_answers_to_another_prompt(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 25])
    work(connection, "not urgent")
    connection.execute("UPDATE loracomp.answer_row SET draw_number = 1")
    alice.execute("UPDATE urgency SET correct = 'urgent'")
    assert listed(alice)["before"].startswith("24 %")
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'Is {subject} urgent?')")
    assert listed(alice)["before"] == "not yet known"
    work(connection, "urgent")
    assert listed(alice)["before"] == "100 % (87 to 100, 25 rows)"


def test_before_counts_the_answers_with_other_descriptions(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 25])
    work(connection, "not urgent")
    connection.execute("UPDATE loracomp.answer_row SET draw_number = 1")
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id <= 20")
    connection.execute("DELETE FROM loracomp.example_embedding")  # so that nothing is measured
    assert listed(alice)["before"].startswith("30 %")
    alice.execute("SELECT loracomp.alter_answers('urgency', descriptions => '{now,later}')")
    assert listed(alice)["before"] == "not yet known"
    alice.execute("SELECT loracomp.alter_answers('urgency', descriptions => '{}')")
    assert listed(alice)["before"].startswith("30 %"), "the answers that are there are answers to this"
    alice.execute("SELECT loracomp.alter_answers('urgency', descriptions => '{now,later}')")
    answer_all(connection, "urgent")
    assert listed(alice)["before"].startswith("100 %")
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'Ticket: {subject} {body}')")
    answer_all(connection)
    assert listed(alice)["before"].startswith("100 %"), "it is the prompt that it was"


def test_before_counts_no_answer_of_an_adapter_that_has_learnt_the_corrections(
    connection: Connection, alice: Connection
) -> None:
    connection.execute("UPDATE loracomp.answer_row SET draw_number = 1")
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    task = listed(alice)["task"]
    own = {"composed_tasks": [task], "adapter_ids": [1], "adapter_sha256": ["a" * 64], "adapter_weights": [1.0]}
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => 'Is {subject} urgent?')")
    answer_all(connection, "urgent", **own)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 2")
    assert value(connection, "SELECT count(first_answer) FROM loracomp.answer_row") == 0
    assert listed(alice)["before"] == "not yet known"


def test_erased_jobs_leave_none_of_their_texts(connection: Connection, alice: Connection) -> None:
    alice.execute("SELECT loracomp.create_answers('said', 'tickets', '{body}', filter => '{\"id\": 1}')")
    answer_all(connection, "a SECRET text")
    alice.execute("UPDATE said SET correct = 'another' WHERE id = 1")
    alice.execute("SELECT loracomp.erase_jobs(ids => ARRAY(SELECT id FROM loracomp.job WHERE kind = 'predict'))")
    assert value(connection, "SELECT count(*) FROM loracomp.answer_row AS r WHERE r::text LIKE '%SECRET%'") == 0
    assert value(alice, "SELECT correct FROM said") == "another"


def test_a_correction_of_a_row_without_a_job_can_be_undone(connection: Connection, alice: Connection) -> None:
    alice.execute("SELECT loracomp.create_answers('said', 'tickets', '{body}', backfill => false)")
    work(connection)
    assert shown(alice, "said")[1][0] == "skipped"
    alice.execute("SELECT loracomp.correct_row('said', '{1}', 'right')")
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 2")
    erased = value(connection, "SELECT job_id FROM loracomp.answer_row WHERE key = '{2}' AND job_id IS NOT NULL")
    alice.execute("SELECT loracomp.erase_jobs(ARRAY[%s])", [erased])
    for view, key, seen in (("said", 1, "right"), ("urgency", 2, "not urgent")):
        alice.execute("SELECT loracomp.correct_row(%s, ARRAY[%s], NULL, %s)", [view, str(key), seen])
        assert value(alice, f"SELECT count(correct) FROM {view}") == 0


def test_a_correction_that_nobody_has_seen_yet_is_not_overwritten(
    connection: Connection, database: str, alice: Connection
) -> None:
    correct = "SELECT loracomp.correct_row('urgency', '{1}', %s)"
    with connect(database, "adam") as adam, ThreadPoolExecutor(1) as pool:
        with adam.transaction():
            adam.execute(correct, ["not urgent"])
            late = pool.submit(alice.execute, correct, ["urgent"])
            wait_for_a_lock(connection)
        with pytest.raises(errors.NoDataFound, match="was corrected, answered again or deleted meanwhile"):
            late.result()
    assert value(alice, "SELECT correct FROM urgency WHERE id = 1") == "not urgent"


@pytest.mark.parametrize("is_purged", [True, False], ids=["purged", "kept"])
def test_a_row_that_has_changed_since_it_was_seen_is_not_corrected(
    connection: Connection, alice: Connection, is_purged: bool
) -> None:
    seen = value(connection, "SELECT job_id FROM loracomp.answer_row WHERE key = '{1}' AND job_id IS NOT NULL")
    if is_purged:
        connection.execute("SELECT loracomp.purge_jobs('0', force => true)")
    correct = "SELECT loracomp.correct_row('urgency', '{1}', %s, %s, %s)"
    alice.execute(correct, ["urgent", None, seen])
    alice.execute("UPDATE tickets SET subject = 'another', body = 'text' WHERE id = 1")
    with pytest.raises(errors.NoDataFound, match="this row has changed since it was answered"):
        alice.execute(correct, ["not urgent", "urgent", seen])


def test_corrections_of_a_paused_declaration_are_measured_afterwards(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 8])
    work(connection)
    alice.execute(CORRECT, [1, 8])
    ids = value(connection, UNEMBEDDED)
    connection.execute(EMBED, {"ids": ids, "n": len(ids)})
    keep(connection)
    assert jobs(connection, "measure") == 8
    assert value(alice, "SELECT loracomp.cancel_answers('urgency')") == 8
    keep(connection)
    assert jobs(connection, "measure") == 0
    assert not value(connection, "SELECT loracomp.rows_wait()")
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => false)")
    work(connection)
    assert value(connection, "SELECT count(*) FROM loracomp.measurement") == 8


def test_a_row_that_is_refused_has_no_correction(connection: Connection, database: str, alice: Connection) -> None:
    """A job can't have its prompt, so it could not be measured either."""
    alice.execute("ALTER TABLE tickets ALTER subject DROP NOT NULL")
    alice.execute("SELECT loracomp.create_answers('said', 'tickets', '{body}')")
    alice.execute("INSERT INTO tickets (id, body) VALUES (7, U&'\\00A0'), (8, repeat('x', 1000001))")
    work(connection)
    for key in (7, 8):
        with pytest.raises(errors.NoDataFound, match="this row has no prompt that can be answered"):
            alice.execute("UPDATE said SET correct = 'urgent' WHERE id = %s", [key])
    assert labelled(connection) == []


def test_a_correction_goes_with_a_prompt_that_is_empty_in_other_words(
    connection: Connection, alice: Connection
) -> None:
    alice.execute("UPDATE tickets SET subject = NULL WHERE id = 1")
    work(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id < 3")
    alice.execute("SELECT loracomp.alter_answers('urgency', prompt => '{subject}')")
    assert labelled(connection) == [("row 2", "urgent")]
    corrected = {row["id"]: row["correct"] for row in alice.execute("SELECT id, correct FROM urgency WHERE id < 3")}
    assert corrected == {1: None, 2: "urgent"}


@pytest.mark.parametrize("fault", ["a prompt that no job can have", "choices that no job can have"])
def test_an_example_that_cannot_be_measured_holds_up_no_other(
    connection: Connection, database: str, alice: Connection, fault: str
) -> None:
    alice.execute(ADD_TICKETS, [7, 9])
    work(connection)
    alice.execute(CORRECT, [1, 9])
    task = listed(alice)["task"]
    connection.execute("SELECT loracomp.add_task('others')")
    connection.execute("SELECT loracomp.add_example('others', 'p', 'a', '{a,b}')")
    if fault == "a prompt that no job can have":
        connection.execute("SELECT loracomp.add_example(%s, U&'\\00A0', 'urgent', '{urgent,not urgent}')", [task])
    else:
        connection.execute("SELECT loracomp.add_example(%s, 'p', 'urgent', '{urgent}')", [task])
    with connect(database, "wendy") as worker:
        ids = value(connection, UNEMBEDDED)
        assert len(ids) == 11
        assert value(worker, EMBED, {"ids": ids, "n": len(ids)}) == 11
    keep(connection)
    assert jobs(connection, "measure") == 9


# Corrections to look at again


def review(person: Connection) -> dict[int, tuple[str, str | None, list[str] | None]]:
    rows = person.execute("SELECT * FROM loracomp.rows_to_review('urgency')")
    return {int(row["key"][0]): (row["correct"], row["answer"], row["people"]) for row in rows}


def test_a_correction_that_the_others_contradict_is_to_be_reviewed(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 20])
    work(connection)
    alice.execute("UPDATE urgency SET correct = CASE WHEN id <= 2 THEN 'not urgent' ELSE 'urgent' END WHERE id <= 18")
    work(connection)
    connection.execute(
        "UPDATE loracomp.answer_row SET confidence = CASE key[1] WHEN '1' THEN 0.99 WHEN '2' THEN 0.6 ELSE 0.9 END"
    )
    assert review(alice) == {1: ("not urgent", "urgent", None)}, "2 is less certain than right answers are"
    (row,) = alice.execute("SELECT * FROM loracomp.rows_to_review('urgency', 1)")
    assert (row["prompt"], row["confidence"]) == ("Ticket: row 1 wrong", 0.99)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    assert review(alice) == {}


def test_thousands_of_corrections_are_reviewed_at_once(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [1001, 4000])
    answer_all(connection, "urgent")
    alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id > 1000")
    alice.execute("SET statement_timeout = '500ms'")  # it takes a hundredth of a second
    assert review(alice) == {}


def test_two_people_who_disagree_about_a_row_are_named(
    connection: Connection, database: str, alice: Connection
) -> None:
    with connect(database, "adam") as adam:

        def correct(person: Connection, key: int, answer: str | None) -> None:
            seen = value(connection, "SELECT correct FROM loracomp.answer_row WHERE key = %s", [[str(key)]])
            person.execute("SELECT loracomp.correct_row('urgency', ARRAY[%s], %s, %s)", [str(key), answer, seen])

        for key, first, second in ((1, "urgent", "not urgent"), (2, "urgent", "urgent")):
            correct(alice, key, first)
            correct(adam, key, second)
        correct(alice, 3, "urgent")
        correct(alice, 3, "not urgent")
        correct(adam, 3, "not urgent")
        correct(alice, 4, "urgent")
        correct(alice, 4, None)
        people = sorted((login("alice"), login("adam")))
        assert review(adam) == {1: ("not urgent", "urgent", people)}
        counts = adam.execute("SELECT * FROM loracomp.count_corrections('urgency')").fetchall()
    assert [tuple(row.values()) for row in counts] == [(login("alice"), 5, 1), (login("adam"), 3, 0)]
    with connect(database, "bob") as bob, pytest.raises(errors.NoDataFound, match="is not a declaration of yours"):
        bob.execute("SELECT * FROM loracomp.rows_to_review('urgency')")


def test_eighty_corrections_propose_an_adapter(connection: Connection, alice: Connection) -> None:
    alice.execute(ADD_TICKETS, [7, 80])
    work(connection)
    alice.execute(CORRECT, [1, 79])
    assert listed(alice)["advice"] is None
    alice.execute(CORRECT, [80, 80])
    assert listed(alice)["advice"].endswith("loracomp answers train public.urgency")
    trained = add_adapter(connection, listed(alice)["task"], base_model=BASE)
    assert listed(alice)["advice"] is None
    alice.execute("SELECT loracomp.drop_answers('urgency')")
    assert value(connection, "SELECT status FROM loracomp.adapter WHERE id = %s", [trained]) == "retired"
    assert labelled(connection) == []


# Trying


def test_prompts_can_be_seen_before_they_are_declared(connection: Connection, alice: Connection) -> None:
    statement = "SELECT filled, text_at::text FROM loracomp.try_prompts('tickets', 'Is {subject} {{new}}?')"
    assert [*map(tuple, (row.values() for row in alice.execute(statement)))] == [
        (f"Is row {number} {{new}}?", "[4,9)") for number in (1, 2, 3)
    ]
    assert shown(alice)[1] == ("answered", "urgent")
    assert value(connection, "SELECT count(*) FROM loracomp.declaration") == 1
    with pytest.raises(errors.UndefinedColumn, match="has no column colour"):
        alice.execute("SELECT * FROM loracomp.try_prompts('tickets', 'Is {colour}?')")
