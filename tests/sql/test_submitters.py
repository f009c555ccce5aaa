"""What somebody who submits jobs meets: many at once, trying again, waiting, and what a job's result says."""

import io
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Thread
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from rich.console import Console

from job_data import BASE, add_jobs, claim, job, prediction_row, record, statuses, wait_for_a_lock
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.cli import jobs
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from people_fixtures import value
from worker_helpers import wait_until

ROLE = f"submitter_{os.getpid()}"


@pytest.fixture(scope="module")
def login(server: str) -> Iterator[str]:
    with psycopg.connect(server, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {ROLE} LOGIN IN ROLE loracomp_submitter".encode())
        yield ROLE
        owner.execute(f"DROP ROLE {ROLE}".encode())


@pytest.fixture
def submitter(connection: Connection, database: str, login: str) -> Iterator[Connection]:
    """A submitter's own session, on a database that was cleared."""
    with db.connect(psycopg.conninfo.make_conninfo(database, user=login)) as own:
        yield own


def submit_jobs(connection: Connection, *jobs: Any) -> list[tuple[int, int | None, str | None]]:
    rows = connection.execute("SELECT * FROM loracomp.submit_jobs(%s) ORDER BY ordinal", [Jsonb(jobs)])
    return [(row["ordinal"], row["job_id"], row["refused"]) for row in rows]


def result(connection: Connection, job_id: int) -> dict[str, Any]:
    row = connection.execute("SELECT * FROM loracomp.job_result WHERE job_id = %s", [job_id]).fetchone()
    assert row is not None
    return row


def answer(connection: Connection, job_id: int, **columns: Any) -> None:
    tokens = {each.id: each.lease_token for each in claim(connection)}
    assert record(connection, {job_id: tokens[job_id]}, [prediction_row(job_id, **columns)]) == {job_id}


# --- trying again


def test_described_choices_are_stored_and_are_part_of_what_a_key_stands_for(submitter: Connection):
    submit = "SELECT loracomp.submit_job('a b', '{x,y}', %s, text_at => '[3,3]', idempotency_key => 'd')"
    mine = value(submitter, submit, [["hot", "cold"]])
    assert value(submitter, submit, [["hot", "cold"]]) == mine
    assert value(submitter, "SELECT descriptions FROM loracomp.job_trace") == ["hot", "cold"]
    assert value(submitter, "SELECT text_at::text FROM loracomp.job_trace") == "[3,4)"
    with pytest.raises(psycopg.errors.UniqueViolation, match=f"by job {mine}, with another descriptions"):
        value(submitter, submit, [["hot", "wet"]])
    ((_, one, _), (_, _, refused)) = submit_jobs(
        submitter,
        {"prompt": "b", "choices": ["x", "y"], "descriptions": ["hot", "cold"]},
        {"prompt": "b", "descriptions": ["hot", "cold"]},
    )
    assert one and refused == "descriptions must be a list of one for each of the choices"


def test_ones_own_job_is_tried_again_and_anothers_is_not(connection: Connection, submitter: Connection):
    submit = "SELECT loracomp.submit_job('a', idempotency_key => 'k')"
    mine = value(submitter, submit)
    (anothers,) = add_jobs(connection, "b")
    submitter.execute("SELECT loracomp.cancel_job(%s)", [mine])
    connection.execute("SELECT loracomp.cancel_job(%s)", [anothers])
    assert value(submitter, submit) == mine
    submitter.execute("SELECT loracomp.retry_job(%s)", [mine])
    with pytest.raises(psycopg.errors.NoDataFound, match="does not exist, or is not yours"):
        submitter.execute("SELECT loracomp.retry_job(%s)", [anothers])
    assert statuses(connection) == {mine: "queued", anothers: "cancelled"}
    connection.execute("SELECT loracomp.retry_job(%s)", [anothers])


def test_trying_again_is_no_way_past_the_limits_of_the_queue(connection: Connection, submitter: Connection):
    first, second = (value(submitter, "SELECT loracomp.submit_job('a')") for _ in range(2))
    submitter.execute("SELECT loracomp.cancel_job(%s)", [first])
    connection.execute("SELECT loracomp.set_queue_limits(1)")
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="at most 1 of your jobs"):
        submitter.execute("SELECT loracomp.retry_job(%s)", [first])
    submitter.execute("SELECT loracomp.cancel_job(%s)", [second])
    submitter.execute("SELECT loracomp.retry_job(%s)", [first])
    connection.execute("SELECT loracomp.set_queue_limits(NULL)")
    assert statuses(connection) == {first: "queued", second: "cancelled"}


def test_numbers_are_stored_as_given_whatever_the_session_shows_of_numbers(submitter: Connection):
    submitter.execute("SET extra_float_digits = -15")
    job_id = value(submitter, "SELECT loracomp.submit_job('a', temperature => 0.25, top_p => 0.74)")
    stored = "SELECT (temperature, top_p) = (0.25, 0.74) FROM loracomp.job WHERE id = %s"
    assert value(submitter, stored, [job_id]) is True


def test_a_conflict_of_keys_names_all_that_differs(connection: Connection, submitter: Connection):
    job_id = value(submitter, "SELECT loracomp.submit_job('a', idempotency_key => 'k')")
    with pytest.raises(
        psycopg.errors.UniqueViolation, match=rf"by job {job_id}, with another max_attempts, tags, timeout_s\n"
    ):
        submitter.execute(
            "SELECT loracomp.submit_job("
            "'a', idempotency_key => 'k', max_attempts => 5, tags => '{\"n\": 1}', timeout_s => 5)"
        )


def test_a_job_that_was_moved_is_still_found_by_its_key(connection: Connection, submitter: Connection):
    again = "SELECT loracomp.submit_job('a', idempotency_key => 'k', run_at => now())"
    job_id = value(submitter, again)
    submitter.execute("SELECT loracomp.set_priority(5, ids => ARRAY[%s::bigint])", [job_id])
    assert value(submitter, again) == job_id


@pytest.mark.parametrize(
    "submits",
    [
        "INSERT INTO loracomp.job (prompt, policy) VALUES ('a', '{}')",
        "SELECT loracomp.submit_job('a', policy => '{}')",
    ],
)
@pytest.mark.parametrize(("wrong", "meant"), [("mesured", "measured"), ("defalut", "default"), ("tie", "ties")])
def test_an_unknown_policy_asks_for_the_one_that_is_most_like_it(
    submitter: Connection, submits: str, wrong: str, meant: str
):
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match=rf"\(did you mean {meant}\?\)"):
        submitter.execute(submits.format(wrong).encode())


def test_a_name_that_is_like_no_other_is_not_asked_about(submitter: Connection):
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="policy nobodys does not exist") as error:
        submitter.execute("SELECT loracomp.submit_job('a', policy => 'nobodys')")
    assert "did you mean" not in (error.value.diag.message_hint or "")


# --- many at once


def test_what_is_good_is_taken_and_what_is_not_is_returned_by_row_and_reason(
    connection: Connection, submitter: Connection
):
    rows: list[Any] = [{"prompt": f"prompt {n}", "tags": {"row": n}} for n in range(1, 101)]
    wrong = {
        7: ({"prompt": " "}, "prompt must not be blank"),
        8: ({"promt": "x"}, "a job has no column promt that you may fill; submitters may fill: prompt, choices,"),
        50: ({"prompt": "x", "choices": ["a"]}, "choices must be a list of 2 to 1000"),
        51: ({"prompt": "x", "policy": "mesured"}, "policy mesured does not exist; the table loracomp.policy lists"),
        52: ({"prompt": "x", "priority": "high"}, 'priority: invalid input syntax for type integer: "high"'),
        53: ("x", "a job must be a JSON object"),
        54: ({"prompt": "x", "exclude_tasks": ["nobodys"]}, "exclude_tasks names tasks that do not exist: nobodys"),
        55: ({}, "prompt must be given"),
        56: ({"prompt": "x", "tags": {}, "choices": "a"}, 'choices: malformed array literal: "a"'),
        57: ({"prompt": "x", "run_at": "soonish"}, "run_at: invalid input syntax for type timestamp with time zone"),
        58: ({"prompt": "x", "stop": [["a"]]}, "stop must hold at most 16 texts none empty"),
        60: ({"prompt": "x", "base_model": "Tiny"}, "base_model Tiny does not exist; the table loracomp.base_model"),
        59: ({"prompt": "x", "weights": [[1]]}, "weights must be one for each of the tasks"),
        61: ({"prompt": "x", "timeout_s": 0}, "timeout_s must be between 1 and 86400"),
        100: ({"prompt": "x", "expected": "y"}, "a job has no column expected that you may fill"),
    }
    for ordinal, (row, _) in wrong.items():
        rows[ordinal - 1] = row
    found = submit_jobs(submitter, *rows)
    assert [ordinal for ordinal, _, _ in found] == list(range(1, 101))
    assert {ordinal for ordinal, job_id, refused in found if job_id is None and refused} == wrong.keys()
    for ordinal, (_, reason) in wrong.items():
        assert (found[ordinal - 1][2] or "").startswith(reason)
    assert (found[50][2] or "").endswith("(did you mean measured?)")
    taken = {row["id"]: row["tags"] for row in submitter.execute("SELECT id, tags FROM loracomp.job")}
    assert taken == {job_id: {"row": ordinal} for ordinal, job_id, _ in found if job_id is not None}


def test_a_row_is_filled_as_an_insert_of_its_prompt_is(connection: Connection, submitter: Connection):
    """By each way to submit, and where a column is null, too."""
    add_jobs(submitter, "a")
    submit_jobs(submitter, {"prompt": "a"}, {"prompt": "a", "priority": None, "stop": None})
    submitter.execute("SELECT loracomp.submit_job('a', policy => NULL)")
    own = ("id", "created_at", "run_at", "place")
    plain, *others = (
        {name: value for name, value in job(connection, id_).items() if name not in own}
        for id_ in sorted(statuses(connection))
    )
    assert others == [plain] * 3


def test_the_same_keys_again_are_the_same_jobs(connection: Connection, submitter: Connection):
    rows = [{"prompt": f"prompt {n}", "idempotency_key": f"key {n}"} for n in range(20)]
    first = submit_jobs(submitter, *rows)
    assert submit_jobs(submitter, *rows) == first
    ((_, job_id, refused),) = submit_jobs(submitter, rows[3] | {"timeout_s": 7})
    assert job_id is None and refused is not None
    assert refused.startswith(f"idempotency_key was used before, by job {first[3][1]}, with another timeout_s")


def test_a_full_queue_refuses_all_rows(connection: Connection, submitter: Connection):
    connection.execute("SELECT loracomp.set_queue_limits(per_submitter => 3)")
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded, match="at most 3 of your jobs"):
        submit_jobs(submitter, *[{"prompt": "a"}] * 4)
    connection.execute("SELECT loracomp.set_queue_limits(NULL)")
    assert statuses(connection) == {}
    assert submit_jobs(submitter) == []


def test_two_thousand_rows_with_a_bad_one_take_seconds(connection: Connection, submitter: Connection):
    submitter.execute("SET statement_timeout = '60s'")
    counts = submitter.execute(
        "SELECT count(job_id) AS taken, array_agg(ordinal) FILTER (WHERE refused IS NOT NULL) AS refused "
        "FROM loracomp.submit_jobs(("
        "    SELECT jsonb_agg(jsonb_build_object('prompt', CASE WHEN n = 1777 THEN ' ' ELSE 'a' END) ORDER BY n)"
        "    FROM generate_series(1, 2000) AS n))"
    ).fetchone()
    assert counts == {"taken": 1999, "refused": [1777]}


def test_a_json_array_is_text_that_any_client_can_send(submitter: Connection):
    rows = submitter.execute(
        """SELECT ordinal, refused FROM loracomp.submit_jobs('[{"prompt": "a"}, {"prompt": " "}]')"""
    ).fetchall()
    assert rows == [{"ordinal": 1, "refused": None}, {"ordinal": 2, "refused": "prompt must not be blank"}]
    (one,) = submitter.execute("""SELECT refused FROM loracomp.submit_jobs('{"prompt": "a"}')""").fetchall()
    assert one == {"refused": None}
    (none,) = submitter.execute("SELECT refused FROM loracomp.submit_jobs('7')").fetchall()
    assert none["refused"].startswith("a job must be a JSON object")


FOREIGN = {
    "status": "'succeeded'", "submitted_by": "'somebody'", "created_at": "now() - interval '1 day'",
    "place": "1", "background": "true", "scheduled": "true", "watched": "true", "attempts": "1",
    "expired_leases": "1", "worker": "'w'",
    "lease_token": "1", "claimed_at": "now()", "lease_expires_at": "now()",
    "finished_at": "now()", "error_code": "'x'", "error": "'x'", "is_correct": "true", "adapter_ids": "'{1}'",
    "labelled_task": "1",
}  # fmt: skip
ADMINISTRATORS = {"task": "'rte'", "expected": "'a'", "example_id": "1"}


@pytest.mark.parametrize(("column", "given"), (FOREIGN | ADMINISTRATORS).items())
def test_a_column_that_is_not_ones_own_is_named(submitter: Connection, column: str, given: str):
    """With what may be filled instead, by VALUES and by SELECT."""
    for rows in (f"VALUES ('a', {given})", f"SELECT 'a', {given}"):
        with pytest.raises(
            psycopg.errors.InsufficientPrivilege, match=f"column {column} of loracomp.job is not yours to fill"
        ) as error:
            submitter.execute(f"INSERT INTO loracomp.job (prompt, {column}) {rows}".encode())
        hint = error.value.diag.message_hint or ""
        assert "you may fill prompt, choices, descriptions, max_new_tokens" in hint and column not in hint.split(
            "you may fill "
        )[1].split(", ")
    assert submitter.execute("SELECT FROM loracomp.job").fetchall() == []


def test_every_column_of_a_job_is_either_to_fill_or_named(connection: Connection):
    columns = {row["attname"] for row in connection.execute(COLUMNS_OF_A_JOB)}
    to_fill = set(value(connection, "SELECT loracomp.submitter_columns()"))
    assert columns == {"id"} | to_fill | FOREIGN.keys() | ADMINISTRATORS.keys()


def test_a_submitted_job_has_the_tables_defaults(connection: Connection):
    """submit_job, with its own list of defaults, inserts the same as a plain INSERT."""
    connection.execute("INSERT INTO loracomp.job (prompt) VALUES ('a'); SELECT loracomp.submit_job('a')")
    inserted, submitted = connection.execute("SELECT to_jsonb(j) AS job FROM loracomp.job AS j ORDER BY id").fetchall()
    differing = {name for name in inserted["job"] if inserted["job"][name] != submitted["job"][name]}
    assert differing <= {"id", "place", "created_at", "run_at"}


def test_submit_job_fills_every_column_that_a_submitter_may_fill(connection: Connection):
    given = {
        "max_new_tokens": 7, "stop": ["x"], "temperature": 0.5, "top_p": 0.5, "seed": 3, "policy": "base",
        "kind": "route", "priority": 2, "run_at": "2040-01-01T00:00:00+00:00", "tasks": ["rte"], "weights": [0.5],
        "exclude_tasks": ["mnli"], "idempotency_key": "k", "tags": {"a": 1}, "max_attempts": 2, "timeout_s": 9,
        "chat_template": True, "system_text": "Be brief.", "base_model": BASE, "prompt": "a",
    }  # fmt: skip
    to_fill = set(value(connection, "SELECT loracomp.submitter_columns()"))
    assert given.keys() == to_fill - {"choices", "descriptions", "text_at"}
    arguments = ", ".join(f"{name} => %({name})s" for name in given)
    with connection.transaction(force_rollback=True):
        connection.execute("UPDATE loracomp.base_model SET has_chat_template = true")
        connection.execute("INSERT INTO loracomp.task (name) VALUES ('rte'), ('mnli') ON CONFLICT DO NOTHING")
        connection.execute(f"SELECT loracomp.submit_job({arguments})".encode(), given | {"tags": Jsonb(given["tags"])})
        stored = value(connection, "SELECT to_jsonb(j) FROM loracomp.job AS j")
    assert {name: stored[name] for name in given} == given


COLUMNS_OF_A_JOB = """
SELECT attname FROM pg_attribute WHERE attrelid = 'loracomp.job'::regclass AND attnum > 0 AND NOT attisdropped
"""


def test_what_postgres_itself_refuses_names_the_column_too(submitter: Connection):
    """Before any trigger runs."""
    with pytest.raises(psycopg.errors.GeneratedAlways, match='column "id"'):
        submitter.execute("INSERT INTO loracomp.job (id, prompt) VALUES (1, 'a')")
    for statement in ("UPDATE loracomp.job SET priority = 9", "DELETE FROM loracomp.job"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table job"):
            submitter.execute(statement)


def test_an_administrator_is_told_too_and_may_fill_three_more(connection: Connection):
    connection.execute("SET ROLE loracomp_admin")
    try:
        for column, given in FOREIGN.items():
            with pytest.raises(
                psycopg.errors.InsufficientPrivilege, match=f"column {column} of loracomp.job is not yours to fill"
            ) as error:
                connection.execute(f"INSERT INTO loracomp.job (prompt, {column}) VALUES ('a', {given})".encode())
            assert "task, expected, example_id" in (error.value.diag.message_hint or "")
        connection.execute("INSERT INTO loracomp.job (prompt, expected, example_id) VALUES ('a', 'b', 1)")
    finally:
        connection.execute("RESET ROLE")


def test_a_definers_function_inserts_what_its_owner_may(connection: Connection, submitter: Connection):
    """Not what its caller may: a submitter's function that an administrator calls fills no lease."""
    connection.execute("CREATE SCHEMA helper")
    connection.execute("GRANT ALL ON SCHEMA helper TO public")
    submitter.execute("""
        CREATE FUNCTION helper.ask(text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN EXECUTE format('INSERT INTO loracomp.job (prompt, %I) VALUES (''a'', ''1'')', $1); END $$
    """)
    try:
        connection.execute("SELECT helper.ask('seed')")
        assert value(connection, "SELECT submitted_by FROM loracomp.job") == ROLE
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"column lease_token of loracomp\.job is not"):
            connection.execute("SELECT helper.ask('lease_token')")
    finally:
        connection.execute("DROP SCHEMA helper CASCADE")


def test_no_object_of_ones_own_passes_for_one_that_the_check_calls(connection: Connection, submitter: Connection):
    connection.execute("CREATE SCHEMA helper")
    connection.execute("GRANT ALL ON SCHEMA helper TO public")
    try:
        for types in ("name, oid, text", "name, name, text", "name, text, text"):
            submitter.execute(
                f"CREATE FUNCTION helper.pg_has_role({types}) RETURNS boolean LANGUAGE sql RETURN true".encode()
            )
        submitter.execute("SET search_path = helper, pg_catalog")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"column lease_token of loracomp\.job is not"):
            submitter.execute("INSERT INTO loracomp.job (prompt, lease_token) VALUES ('a', 1)")
    finally:
        connection.execute("DROP SCHEMA helper CASCADE")


# --- what a result says


def test_a_result_has_choices_and_confidence(connection: Connection):
    (job_id,) = add_jobs(connection, "a", choices=["x", "y", "z"])
    scores = [-1.0, -2.0, -3.0]
    answer(connection, job_id, output="x", choice_index=1, choice_scores=scores)
    row = result(connection, job_id)
    assert row["choices"] == ["x", "y", "z"]
    assert row["confidence"] == pytest.approx(math.exp(-1) / sum(map(math.exp, scores)))
    assert value(connection, "SELECT loracomp.confidence('{-5000,0}')") == 1
    assert value(connection, "SELECT loracomp.confidence('{}')") is None


def test_generated_text_begins_without_white_space_and_a_choice_is_as_it_was_given(connection: Connection):
    generated, chosen = *add_jobs(connection, "a"), *add_jobs(connection, "b", choices=[" x", "y"])
    tokens = {each.id: each.lease_token for each in claim(connection)}
    outputs = {generated: " \n Paris ", chosen: " x"}
    record(connection, tokens, [prediction_row(id_, output=text) for id_, text in outputs.items()])
    assert [result(connection, id_)["output"] for id_ in (generated, chosen)] == ["Paris ", " x"]
    assert result(connection, generated)["confidence"] is None
    assert value(connection, "SELECT output FROM loracomp.job_trace WHERE job_id = %s", [generated]) == " \n Paris "


def test_no_latency_is_negative(connection: Connection):
    (job_id,) = add_jobs(connection, "a", run_at="3000-01-01")
    connection.execute("SELECT loracomp.cancel_job(%s)", [job_id])
    assert result(connection, job_id)["latency_s"] == 0
    assert value(connection, "SELECT latency_s FROM bi.prediction WHERE job_id = %s", [job_id]) == 0


# --- waiting


def test_waiting_ends_with_the_job(connection: Connection, submitter: Connection):
    (job_id,) = add_jobs(submitter, "a")
    wait = "SELECT loracomp.wait_for_job(%s, '50s')"
    waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND query LIKE '%%wait_for_job%%'"
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(value, submitter, wait, [job_id])
        wait_until(lambda: connection.execute(waits, [submitter.info.backend_pid]).fetchone() is not None)
        answer(connection, job_id)
        assert waited.result(60) == "succeeded"
    assert value(submitter, wait, [job_id]) == "succeeded"


def test_waiting_ends_in_time(connection: Connection, submitter: Connection):
    (job_id,) = add_jobs(submitter, "a")
    wait = "SELECT ended, clock_timestamp() - now() AS waited FROM loracomp.wait_for_job(%s, '0.2s') AS ended"
    (row,) = submitter.execute(wait, [job_id])
    assert (row["ended"], row["waited"] >= timedelta(seconds=0.2)) == ("queued", True)


@pytest.mark.parametrize(
    ("before", "timeout", "says"),
    [
        ("", "'6min'", "timeout must be between 0 and 5 minutes"),
        ("", "'-1s'", "timeout must be between 0 and 5 minutes"),
        ("", "NULL", "timeout must be between 0 and 5 minutes"),
        (
            "BEGIN ISOLATION LEVEL REPEATABLE READ; ",
            "'1s'",
            "transaction with isolation level repeatable read",
        ),
        ("BEGIN; SELECT loracomp.retry_job({id}); ", "'1s'", "was changed in this transaction"),
    ],
)
def test_waiting_for_nothing_is_refused(
    connection: Connection, submitter: Connection, before: str, timeout: str, says: str
):
    (job_id,) = add_jobs(submitter, "a")
    submitter.execute("SELECT loracomp.cancel_job(%s)", [job_id]) if "retry" in before else None
    submitter.execute("SET statement_timeout = '60s'")
    with pytest.raises(psycopg.Error, match=says):
        submitter.execute(f"{before.format(id=job_id)}SELECT loracomp.wait_for_job({job_id}, {timeout})".encode())


def test_nobody_waits_for_anothers_job(connection: Connection, submitter: Connection):
    (job_id,) = add_jobs(connection, "a")
    with pytest.raises(psycopg.errors.NoDataFound, match="does not exist, or is not yours"):
        submitter.execute("SELECT loracomp.wait_for_job(%s)", [job_id])


# --- many jobs at once


@pytest.mark.parametrize("chosen", ["ids => %(ids)s", """tags => '{"batch": 7}'"""])
def test_ones_own_jobs_that_have_not_ended_are_cancelled_and_counted(
    connection: Connection, submitter: Connection, chosen: str
):
    tags = Jsonb({"batch": 7, "more": {}})
    done, running, waiting = mine = add_jobs(submitter, "a", "b", "c", tags=tags)
    tokens = {each.id: each.lease_token for each in claim(connection, 2)}
    record(connection, {done: tokens[done]}, [prediction_row(done)])
    others = add_jobs(submitter, "d", "e", tags=Jsonb({"batch": [7]})) + add_jobs(connection, "f", tags=tags)
    call = f"SELECT loracomp.cancel_jobs({chosen})"
    ids = {"ids": [*mine, others[-1], 1_000_000]}
    assert [value(submitter, call, ids) for _ in range(2)] == [2, 0]
    assert statuses(connection) == {done: "succeeded", running: "cancelled", waiting: "cancelled"} | dict.fromkeys(
        others, "queued"
    )
    assert value(connection, call, ids) == 1


def test_cancelling_what_waits_ends_in_no_error_while_workers_end_jobs(connection: Connection, database: str):
    """The query finds a job waiting that has ended by the time at which its turn to be cancelled comes."""
    first, second = add_jobs(connection, "a", "b")
    with db.connect(database) as own, ThreadPoolExecutor(1) as pool:
        with connection.transaction():
            for each in claim(connection, 1):
                record(connection, {each.id: each.lease_token}, [prediction_row(each.id)])
            query = "SELECT loracomp.cancel_jobs(ARRAY(SELECT id FROM loracomp.job WHERE status = 'queued'))"
            cancelling = pool.submit(value, own, query)
            wait_for_a_lock(connection)
        assert cancelling.result(60) == 1
    assert statuses(connection) == {first: "succeeded", second: "cancelled"}


def test_ones_own_jobs_are_moved_and_erased_and_anothers_are_not(connection: Connection, submitter: Connection):
    tags = Jsonb({"batch": 7})
    mine = add_jobs(submitter, "a", "b", tags=tags)
    (anothers,) = add_jobs(connection, "c", tags=tags)
    for chosen in ("""tags => '{"batch": 7}'""", f"ids => '{{{anothers},{mine[0]},{mine[1]}}}'"):
        assert value(submitter, f"SELECT loracomp.set_priority(9, {chosen})") == 2
    priorities = {row["id"]: row["priority"] for row in connection.execute("SELECT id, priority FROM loracomp.job")}
    assert priorities == dict.fromkeys(mine, 9) | {anothers: 0}
    erase = "SELECT rows FROM loracomp.erase_jobs"
    assert value(submitter, f"{erase}(ids => '{{{anothers},{mine[0]}}}') WHERE what = 'jobs deleted'") == 1
    assert value(submitter, f"""{erase}(tags => '{{"batch": 7}}') WHERE what = 'jobs deleted'""") == 1
    assert statuses(connection) == {anothers: "queued"}


@pytest.mark.parametrize("call", ["cancel_jobs({})", "set_priority(1, {})", "erase_jobs({})"])
@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("ids => NULL", "give either ids or tags"),
        ("ids => '{1}', tags => '{\"a\": 1}'", "give either ids or tags"),
        ("tags => '{}'", "tags must be a JSON object that names a tag, and is {}"),
        ("tags => '[7]'", "tags must be a JSON object"),
        ("tags => 'null'", "tags must be a JSON object"),
    ],
)
def test_nobodys_jobs_are_refused_by_name(submitter: Connection, call: str, chosen: str, says: str):
    add_jobs(submitter, "a")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=says):
        submitter.execute(f"SELECT loracomp.{call.format(chosen)}".encode())


# --- the queue's order, for administrators


def test_a_queued_job_gets_another_priority_and_the_audit_keeps_both(connection: Connection):
    first, second = add_jobs(connection, "a", "b")
    connection.execute("SELECT loracomp.set_priority(10, ids => ARRAY[%s::bigint])", [second])
    assert [each.id for each in claim(connection, 1)] == [second]
    event = connection.execute(
        "SELECT before, after FROM loracomp.audit_event WHERE reason = 'set_priority' AND entity_id = %s", [second]
    ).fetchone()
    assert event == {"before": {"priority": 0}, "after": {"priority": 10}}
    assert value(connection, "SELECT loracomp.set_priority(0, ids => ARRAY[%s::bigint])", [second]) == 0
    with pytest.raises(psycopg.errors.CheckViolation, match="priority_must_be_between_minus_10_and_10"):
        connection.execute("SELECT loracomp.set_priority(11, ids => ARRAY[%s::bigint])", [first])


def test_what_waits_says_how_to_start_a_worker_of_its_own_base_model(connection: Connection):
    (job_id,) = add_jobs(connection, "a")
    explained = value(connection, "SELECT loracomp.explain_job(%s)", [job_id])
    assert f"LORACOMP_BASE_MODEL='{BASE}' loracomp worker" in explained


# --- the command line


def test_ask_waits_on_where_the_login_may_not_answer_itself(
    connection: Connection, database: str, login: str, run: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LORACOMP_DATABASE_URL", psycopg.conninfo.make_conninfo(database, user=login))

    said = io.StringIO()
    monkeypatch.setattr(jobs, "remarks", Console(file=said, width=200))

    def work() -> None:
        wait_until(lambda: "is waiting for a worker" in said.getvalue())
        with db.connect(database) as own:
            (claimed,) = claim(own)
            record(own, {claimed.id: claimed.lease_token}, [prediction_row(claimed.id, output="at last")])

    worker = Thread(target=work)
    worker.start()
    answered = run("ask", "a", "--patience", "0.1")
    worker.join()
    assert (answered["status"], answered["output"]) == ("succeeded", "at last")
