"""What a submitter leaves open holds up no answer of anybody else, and loses none of her own."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from answers_data import (
    ADD_TICKETS,
    EMBED,
    TICKETS,
    UNEMBEDDED,
    URGENCY,
    adapter,
    answer_all,
    as_alice,
    keep,
    keep_and_claim,
    shown,
    tidy,
    work,
)
from job_data import BASE, add_jobs, claim, record, wait_for_a_lock
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.engine.measuring import Measurement, record_measurements
from loracomp.records import Failure, Job
from loracomp.worker.keeper import call
from loracomp.worker.leases import release_jobs, renew_leases
from loracomp.worker.recorder import fail_jobs
from people_fixtures import connect, login, value
from routing_data import add_adapter
from worker_helpers import wait_until

SOON_S = 30
"""Within which a worker's call returns, whatever a submitter holds: it waits two seconds for jobs that are being
cancelled. What waits for the submitter would wait for ever."""


@pytest.fixture
def alice(connection: Connection, database: str, logins: None) -> Iterator[Connection]:
    """She has declared urgency over six tickets; three are answered, and one of these is corrected."""
    connection.execute("SELECT loracomp.add_task('tea')")
    add_adapter(connection, "tea", base_model=BASE)
    with as_alice(database) as opened:
        opened.execute(TICKETS)
        opened.execute(URGENCY)
        opened.execute(ADD_TICKETS, [1, 3])
        work(connection)
        opened.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
        opened.execute(ADD_TICKETS, [4, 6])
        yield opened
    tidy(connection)


def test_a_correction_that_is_left_open_holds_up_no_correction_of_another_row(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute(f"GRANT SELECT, UPDATE ON urgency TO {login('bob')}".encode())
    alice.execute(f"GRANT SELECT ON tickets TO {login('bob')}".encode())
    with connect(database, "bob") as bob, bob.transaction():
        bob.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 2")
        alice.execute("SET statement_timeout = '60s'")
        alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 3")
        alice.execute("UPDATE urgency SET correct = NULL WHERE id = 1")
    rows = alice.execute("SELECT correct FROM urgency WHERE id < 4 ORDER BY id")
    assert [row["correct"] for row in rows] == [None, "urgent", "not urgent"]


KEPT = {
    "a correction": "UPDATE urgency SET correct = 'urgent'",
    "a correction that is taken back": "UPDATE urgency SET correct = NULL",
    "a correction by a function": "SELECT loracomp.correct_answer('urgency', id, 'urgent') FROM tickets",
    "a correction of a seen row": "SELECT loracomp.correct_row('urgency', '{4}', 'not urgent')",
    "rows to correct": "SELECT * FROM loracomp.rows_to_correct('urgency')",
    "rows for a visitor": "SELECT * FROM loracomp.rows_to_correct('urgency', 4, 'eva')",
    "all again": "SELECT loracomp.alter_answers('urgency', again => true)",
    "another prompt": "SELECT loracomp.alter_answers('urgency', prompt => 'Is {subject} urgent?')",
    "other choices": "SELECT loracomp.alter_answers('urgency', choices => '{urgent,so so}')",
    "a pause": "SELECT loracomp.alter_answers('urgency', paused => true)",
    "another declaration": "SELECT loracomp.create_answers('more', 'tickets', '{body}')",
    "other rows": "UPDATE tickets SET body = 'other'",
    "no rows": "TRUNCATE tickets",
    "another table": "ALTER TABLE tickets ADD extra text",
    "the table's lock": "LOCK TABLE tickets",
    "another trigger": "DROP TRIGGER loracomp_correct ON urgency",
    "her jobs' priority": "SELECT loracomp.set_priority(5, ids => ARRAY(SELECT id FROM loracomp.job))",
}
"""Statements that do not end her declaration. Whether they are rolled back or not, her answers are there in the end."""
ENDING = {
    "a dropped declaration": "SELECT loracomp.drop_answers('urgency')",
    "a dropped table": "DROP TABLE tickets CASCADE",
    "her jobs cancelled": "SELECT loracomp.cancel_jobs(ids => ARRAY(SELECT id FROM loracomp.job))",
    "her jobs erased": "SELECT loracomp.erase_jobs(ids => ARRAY(SELECT id FROM loracomp.job))",
}


@pytest.mark.parametrize("what", [*KEPT, *ENDING])
@pytest.mark.parametrize("undone", [True, False], ids=["undone", "done"])
def test_what_a_submitter_leaves_open_holds_up_no_other_answer(
    connection: Connection, alice: Connection, database: str, what: str, undone: bool
) -> None:
    jobs = claim(connection)
    others = add_jobs(connection, "one of bob's")
    jobs = (*jobs, *claim(connection, held=jobs))
    assert len(jobs) == 4
    with alice.transaction(force_rollback=undone), connect(database, "wendy") as worker:
        worker.execute("SET statement_timeout = '60s'")
        alice.execute((KEPT | ENDING)[what].encode())
        began = time.monotonic()
        assert renew_leases(worker, jobs, 60) >= {*others}
        recorded = record(worker, tokens(jobs), [{"job_id": job.id, "output": "urgent"} for job in jobs])
        assert time.monotonic() - began < SOON_S
        assert recorded >= {*others}
        assert what in ENDING or recorded == {job.id for job in jobs}
        later = add_jobs(connection, "another of bob's")
        began = time.monotonic()
        assert {job.id for job in claim(worker)} >= {*later}
        assert time.monotonic() - began < SOON_S
    if what in ENDING and not undone:
        return
    expire(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => false)")

    expected = 0 if what == "no rows" and not undone else 6

    def are_answered() -> bool:
        connection.execute("UPDATE loracomp.declaration SET retry_at = '-infinity'")
        work(connection)
        return [*shown(alice).values()] == [("answered", "urgent")] * expected

    wait_until(are_answered)


def test_measurements_are_recorded_while_a_corrected_row_is_locked(
    connection: Connection, alice: Connection, database: str
) -> None:
    """These measurements bring the number of measured corrections to sixteen, from which on the corrected rows are
    asked again."""
    alice.execute(ADD_TICKETS, [7, 20])
    work(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id <= 16")
    ids = value(connection, UNEMBEDDED)
    connection.execute(EMBED, {"ids": ids, "n": len(ids)})
    jobs = claim(connection, 100)
    assert [job.kind for job in jobs] == ["measure"] * 16
    results = [Measurement(job.id, "tokens", -1.0, True, (adapter(connection),), (0.5,), (True,)) for job in jobs]
    with alice.transaction(), connect(database, "wendy") as worker:
        worker.execute("SET statement_timeout = '60s'")
        alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 3")
        assert len(record_measurements(worker, jobs, results)) == 16
    work(connection)
    others = "SELECT count(*) FROM urgency WHERE answered_by LIKE '%% corrections' AND id <= 16 AND id <> %s"
    assert value(alice, others, [3]) == 15
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 17")
    work(connection)
    assert value(alice, others, [0]) == 16, "the next measurement asks the row that was locked"


def test_jobs_that_many_sessions_lock_are_waited_for_two_seconds_in_all(connection: Connection, database: str) -> None:
    ids = add_jobs(connection, *map(str, range(22)))
    jobs = claim(connection, len(ids))
    with ExitStack() as opened, ThreadPoolExecutor(1) as executor, db.connect(database) as own:
        holders = [opened.enter_context(db.connect(database)) for _ in ids[1:]]
        for holder, job_id in zip(holders, ids, strict=False):
            holder.execute("BEGIN")
            holder.execute("SELECT loracomp.set_priority(0, ids => %s)", [[job_id]])
            holder.execute("SELECT loracomp.cancel_jobs(ids => %s)", [[job_id]])

        def let_one_go() -> None:
            wait_for_a_lock(own)
            holders[0].execute("ROLLBACK")

        letting_go = executor.submit(let_one_go)
        began = time.monotonic()
        recorded = record(connection, tokens(jobs), [{"job_id": job.id} for job in jobs])
        assert time.monotonic() - began < SOON_S, "not two for each of the other twenty"
        letting_go.result()
    assert recorded == {ids[0], ids[-1]}, "the first was let go meanwhile"


def test_rows_that_stay_locked_hold_up_no_late_answer(connection: Connection, alice: Connection, database: str) -> None:
    alice.execute(ADD_TICKETS, [7, 1240])  # a call takes 1,000
    work(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    jobs = claim(connection, 1000)
    while more := claim(connection, 1000):
        jobs = (*jobs, *more)
    (last,) = connection.execute("SELECT key[1] AS id FROM loracomp.answer_row ORDER BY job_id DESC LIMIT 1")
    rows = [{"job_id": job.id, "output": "not urgent"} for job in jobs]
    with alice.transaction(), db.connect(database) as other:
        alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id <> %s", [last["id"]])
        assert len(record(connection, tokens(jobs[:-1]), rows[:-1])) == 1239
        assert len(record(connection, tokens(jobs[-1:]), rows[-1:])) == 1
        assert value(connection, "SELECT loracomp.take_answers()") == 1
        assert {*shown(other).values()} == {("stale", "urgent"), ("answered", "not urgent")}
    keep(connection)
    assert {*shown(alice).values()} == {("answered", "not urgent")}
    assert value(connection, "SELECT count(*) FROM loracomp.ended_job") == 0


def test_answers_are_taken_past_many_rows_that_stay_locked(
    connection: Connection, alice: Connection, database: str
) -> None:
    """A call that looked at all of them would be cancelled after five seconds, and so would each later one."""
    work(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    jobs = keep_and_claim(connection)
    connection.execute(
        "INSERT INTO loracomp.answer_row (declaration_id, key, status, job_id, prompt_hash)"
        " SELECT d.id, ARRAY['x' || i], 'waiting', 1000000 + i, ''"
        " FROM loracomp.declaration AS d, generate_series(1, 40000) AS i"
    )
    connection.execute("INSERT INTO loracomp.ended_job (job_id) SELECT 1000000 + i FROM generate_series(1, 40000) AS i")
    record(connection, tokens(jobs), [{"job_id": job.id, "output": "not urgent"} for job in jobs])
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT count(*) FROM (SELECT FROM loracomp.answer_row WHERE key[1] ~ 'x' FOR UPDATE) AS r")
        with connection.transaction():
            assert value(connection, "SELECT loracomp.take_answers()") == len(jobs) == 6
            looked_up = "SELECT idx_scan FROM pg_stat_xact_user_tables WHERE relid = 'loracomp.answer_row'::regclass"
            assert value(connection, looked_up) < 60_000
    assert {*shown(alice).values()} == {("answered", "not urgent")}
    connection.execute("DELETE FROM loracomp.ended_job")


def test_answers_are_taken_from_between_many_rows_that_stay_locked(
    connection: Connection, alice: Connection, database: str
) -> None:
    work(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    jobs = keep_and_claim(connection)
    connection.execute(
        "INSERT INTO loracomp.answer_row (declaration_id, key, status, job_id, prompt_hash)"
        " SELECT d.id, ARRAY['x' || i], 'waiting', 1000000 + i, ''"
        " FROM loracomp.declaration AS d, generate_series(1, 26000) AS i"
    )
    notes = "INSERT INTO loracomp.ended_job (job_id) SELECT 1000000 + i FROM generate_series(%s::int, %s::int) AS i"
    connection.execute(notes, [1, 13000])
    record(connection, tokens(jobs), [{"job_id": job.id, "output": "not urgent"} for job in jobs])
    connection.execute(notes, [13001, 26000])
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT count(*) FROM (SELECT FROM loracomp.answer_row WHERE key[1] ~ 'x' FOR UPDATE) AS r")
        taken = [value(connection, "SELECT loracomp.take_answers()") for _ in range(40)]  # each: 10 of 26, at random
        assert sum(taken) == len(jobs) == 6
    assert {*shown(alice).values()} == {("answered", "not urgent")}
    connection.execute("DELETE FROM loracomp.ended_job")


def test_a_row_that_was_locked_while_its_job_was_purged_is_asked_again(
    connection: Connection, alice: Connection, database: str
) -> None:
    work(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', again => true)")
    jobs = keep_and_claim(connection)
    with alice.transaction(force_rollback=True):
        alice.execute("UPDATE urgency SET correct = 'not urgent' WHERE id = 2")
        record(connection, tokens(jobs), [{"job_id": job.id, "output": "not urgent"} for job in jobs])
        assert value(connection, "SELECT loracomp.purge_jobs('0', force => true)") >= len(jobs) == 6
        keep(connection)
        assert claim(connection, 10) == ()
    assert [prompt.split()[2] for prompt in answer_all(connection, "not urgent")] == ["2"]
    assert {*shown(alice).values()} == {("answered", "not urgent")}


def test_answers_are_taken_after_a_purge_that_was_rolled_back(connection: Connection, alice: Connection) -> None:
    """A purge takes answers itself, and what it has deleted comes back with its rollback."""
    jobs = keep_and_claim(connection)
    for _ in range(150):
        connection.execute("SELECT pg_current_xact_id()")
    record(connection, tokens(jobs), [{"job_id": job.id, "output": "urgent"} for job in jobs])
    with connection.transaction(force_rollback=True):
        connection.execute("SELECT loracomp.purge_jobs('90 days')")
    keep(connection)
    assert {*shown(alice).values()} == {("answered", "urgent")}


def test_erasing_and_purging_wait_for_each_other(connection: Connection, alice: Connection, database: str) -> None:
    """Both need the rows of the answers, and a lock that keeps reports from being refreshed meanwhile."""
    jobs = keep_and_claim(connection)
    record(connection, tokens(jobs), [{"job_id": job.id, "output": "urgent"} for job in jobs])
    with ThreadPoolExecutor(1) as pool, db.connect(database) as other:
        with other.transaction():
            other.execute("LOCK TABLE loracomp.report_day IN SHARE ROW EXCLUSIVE MODE")
            purging = pool.submit(value, connection, "SELECT loracomp.purge_jobs('0', force => true)")
            wait_for_a_lock(other)
            other.execute("SELECT loracomp.erase_jobs(ids => %s)", [[jobs[0].id]])
        assert purging.result() >= len(jobs) - 1 == 2


def test_the_first_correction_holds_up_no_other_row(connection: Connection, alice: Connection, database: str) -> None:
    """The first correction makes the declaration's task, and must not keep the declaration locked."""
    alice.execute("SELECT loracomp.create_answers('said', 'tickets', 'say {body}', '{urgent,so so}')")
    work(connection)
    with connect(database, "alice") as corrector:
        for correction in (
            "UPDATE said SET correct = 'so so' WHERE id = 1",
            "SELECT loracomp.correct_row('said', '{1}', 'so so')",
        ):
            with corrector.transaction(force_rollback=True):
                corrector.execute(correction.encode())
                alice.execute("UPDATE tickets SET body = body || '!' WHERE id > 1")
                work(connection)
                assert [*shown(alice, "said").values()] == [("answered", "urgent")] * 6


def test_an_example_that_an_open_correction_shares_stays_and_holds_up_no_other_row(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute("UPDATE tickets SET subject = 'same' WHERE id < 3")
    work(connection)
    alice.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 1")
    with connect(database, "alice") as corrector, corrector.transaction():
        corrector.execute("UPDATE urgency SET correct = 'urgent' WHERE id = 2")
        alice.execute("UPDATE tickets SET body = 'other' WHERE id IN (1, 3)")
        connection.execute("SET statement_timeout = '60s'")
        work(connection)
        assert {*shown(alice).values()} == {("answered", "urgent")}
    keep(connection)
    shared = """
        SELECT e.prompt FROM loracomp.answer_row AS r JOIN loracomp.example AS e ON e.id = r.example_id
        WHERE r.correct IS NOT NULL
    """
    assert [row["prompt"] for row in connection.execute(shared)] == ["Ticket: same wrong"]


def test_a_new_row_waits_for_no_others_that_are_locked(
    connection: Connection, alice: Connection, database: str
) -> None:
    alice.execute("INSERT INTO tickets (id, subject) SELECT n, 'many' FROM generate_series(1001, 1500) AS n")
    work(connection)
    with connect(database, "alice") as corrector, corrector.transaction():
        corrector.execute("UPDATE urgency SET correct = 'urgent' WHERE id > 1000")
        alice.execute("UPDATE tickets SET subject = 'other' WHERE id > 1000")
        alice.execute("INSERT INTO tickets (id, subject) VALUES (2001, 'new')")
        connection.execute("SELECT loracomp.ask_rows()")
        new = "SELECT count(*) FROM loracomp.answer_row WHERE key = '{2001}' AND job_id IS NOT NULL"
        assert value(connection, new) == 1


def test_failed_and_released_jobs_wait_for_no_correction(
    connection: Connection, alice: Connection, database: str
) -> None:
    failing, released = claim(connection)[:2]
    with alice.transaction(), connect(database, "wendy") as worker:
        worker.execute("SET statement_timeout = '60s'")
        alice.execute("UPDATE urgency SET correct = 'urgent'")
        assert fail_jobs(worker, [failing], [Failure(failing.id, "too_long", "too long")]) == {failing.id}
        release_jobs(worker, [released])
    keep(connection)
    failed = "SELECT status FROM loracomp.answer_row WHERE job_id = %s"
    assert (value(connection, failed, [failing.id]), value(connection, failed, [released.id])) == ("failed", "waiting")


def test_a_restored_declaration_with_many_answers_goes_on(connection: Connection, alice: Connection) -> None:
    """Their transaction ids were rewritten by one statement, which was cancelled after five seconds each time."""
    work(connection)
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # so that the rows have no hints
        connection.execute(ADD_TICKETS, [1001, 6000])
    connection.execute(
        "INSERT INTO loracomp.answer_row (declaration_id, key, status, prompt_hash, changed_in)"
        " SELECT d.id, ARRAY[i::text], 'refused', '', i FROM loracomp.declaration d, generate_series(1001, 6000) AS i"
    )
    connection.execute("UPDATE loracomp.declaration SET source_identity = 'another'")
    assert in_one_call(connection, "n_tup_upd", "answer_row") < 3000
    alice.execute(ADD_TICKETS, [7, 7])
    work(connection)
    assert shown(alice)[7] == ("answered", "urgent")
    seen = "SELECT count(*) FROM loracomp.answers_since('urgency', most => 9000)"
    assert value(alice, seen) >= 5000


def test_the_feed_of_a_paused_declaration_has_all_answers_after_a_restore(
    connection: Connection, alice: Connection
) -> None:
    """A restored database may have used fewer transaction ids than the one that was dumped."""
    work(connection)
    alice.execute("SELECT loracomp.alter_answers('urgency', paused => true)")
    connection.execute("UPDATE loracomp.answer_row SET changed_in = changed_in + 1000000000")
    connection.execute("UPDATE loracomp.declaration SET source_identity = 'another'")
    feed = "SELECT key, cursor FROM loracomp.answers_since('urgency', %s, 4)"
    first = alice.execute(feed, [None]).fetchall()
    second = alice.execute(feed, [first[-1]["cursor"]]).fetchall()
    assert sorted(row["key"][0] for row in [*first, *second]) == ["1", "2", "3", "4", "5", "6"]
    keep(connection)
    assert value(connection, "SELECT source_identity = loracomp.identity_of(source) FROM loracomp.declaration")
    assert len(alice.execute(feed, [second[-1]["cursor"]]).fetchall()) == 4, "it begins again"


def test_a_restored_table_is_known_though_it_has_got_its_oid_again(connection: Connection, alice: Connection) -> None:
    """As often happens when a restored database is dumped and restored: only the server is another."""
    work(connection)
    connection.execute(
        "UPDATE loracomp.declaration SET source_identity = regexp_replace(source_identity, '^[0-9]+', '1'),"
        " hints_from = 1000000000"
    )
    connection.execute("UPDATE loracomp.answer_row SET changed_in = changed_in + 1000000000")
    alice.execute("UPDATE tickets SET body = 'another' WHERE id = 1")
    assert value(alice, "SELECT count(*) FROM loracomp.answers_since('urgency')") == 6
    for _ in range(2):  # the first may end with what it has found out about the restore
        work(connection)
    assert {*shown(alice).values()} == {("answered", "urgent")}
    assert "another" in value(alice, "SELECT prompt FROM loracomp.list_answer_rows('urgency') WHERE key = '{1}'")
    assert value(alice, "SELECT count(*) FROM loracomp.answers_since('urgency')") == 6


def test_answers_that_were_not_taken_before_a_dump_are_taken_after_the_restore(
    connection: Connection, alice: Connection
) -> None:
    """pg_dump reads a sequence as it is, and tables as they were when it began."""
    jobs = keep_and_claim(connection)
    record(connection, tokens(jobs), [{"job_id": job.id, "output": "urgent"} for job in jobs])
    connection.execute("UPDATE loracomp.ended_job SET written_in = 3")
    connection.execute("UPDATE loracomp.declaration SET source_identity = 'another'")
    connection.execute("SELECT setval('loracomp.ended_jobs_from', pg_current_xact_id()::text::bigint)")
    for _ in range(2):  # the first may end with what it has found out about the restore
        keep(connection)
    assert {*shown(alice).values()} == {("answered", "urgent")}
    assert value(connection, "SELECT count(*) FROM loracomp.ended_job") == 0


def test_many_corrections_are_measured_in_parts(connection: Connection, alice: Connection) -> None:
    """The jobs of 20,000 were inserted by one statement, which was cancelled after five seconds each time."""
    connection.execute(
        "INSERT INTO loracomp.example (task_id, split, prompt, choices, label, content_hash)"
        " SELECT d.task_id, 'train', 'row ' || i, d.choices, 'urgent', sha256(i::text::bytea)"
        " FROM loracomp.declaration AS d, generate_series(1, 450) AS i"
    )
    ids = value(connection, UNEMBEDDED)
    connection.execute(EMBED, {"ids": ids, "n": len(ids)})
    step = "SELECT loracomp.measure_corrections()"
    assert [value(connection, step) for _ in range(4)] == [200, 200, 450 + 1 - 400, 0]
    connection.execute("DELETE FROM loracomp.job")


def test_a_failed_measurement_waits_for_nobody_who_waits_for_its_declaration(
    connection: Connection, alice: Connection, database: str
) -> None:
    """The step let the declaration's lock go when it failed, and then waited for who had got it."""
    connection.execute(
        "INSERT INTO loracomp.example (task_id, split, prompt, choices, label, content_hash)"
        " SELECT d.task_id, 'train', 'row ' || i, d.choices, 'urgent', sha256(i::text::bytea)"
        " FROM loracomp.declaration AS d, generate_series(1, 8) AS i"
    )
    ids = value(connection, UNEMBEDDED)
    connection.execute(EMBED, {"ids": ids, "n": len(ids)})
    connection.execute(
        "CREATE FUNCTION pg_temp.pause() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;"
        " CREATE TRIGGER pause BEFORE UPDATE ON loracomp.declaration EXECUTE FUNCTION pg_temp.pause()"
    )
    with db.connect(database) as keeper, ThreadPoolExecutor(2) as pool, alice.transaction(force_rollback=True):
        with connection.transaction():
            connection.execute("LOCK TABLE loracomp.job IN SHARE MODE")  # so that its jobs can't be inserted
            step = pool.submit(call, keeper, "measure_corrections")
            wait_for_a_lock(connection)
            altered = pool.submit(alice.execute, "SELECT loracomp.alter_answers('urgency', priority => 0)")
            assert step.result(60) == 0
        altered.result(60)
    connection.execute("DROP FUNCTION pg_temp.pause CASCADE")
    assert value(connection, "SELECT measure_at > now() FROM loracomp.declaration")


def test_a_dropped_table_with_many_hints_is_forgotten(connection: Connection, alice: Connection) -> None:
    connection.execute(
        "INSERT INTO loracomp.answer_hint (declaration_id, key)"
        " SELECT d.id, ARRAY['x' || i] FROM loracomp.declaration AS d, generate_series(1, 45000) AS i"
    )
    alice.execute("DROP TABLE tickets CASCADE")
    assert in_one_call(connection, "n_tup_del", "answer_hint") < 30000
    keep(connection)
    assert value(connection, "SELECT count(*) FROM loracomp.declaration") == 0
    assert value(connection, "SELECT count(*) FROM loracomp.answer_hint") == 0


def in_one_call(connection: Connection, what: str, table: str) -> int:
    """How many rows of a table one call of ask_rows reads or writes."""
    counted = f"SELECT {what} FROM pg_stat_xact_user_tables WHERE relname = '{table}'"
    with connection.transaction():
        before: int = value(connection, counted)  # of earlier transactions, whose statistics are still to be written
        connection.execute("SELECT loracomp.ask_rows()")
        return value(connection, counted) - before


def test_a_page_reads_its_own_rows_however_many_have_answers(connection: Connection, alice: Connection) -> None:
    """Before the first ANALYZE, when Postgres can't tell which index finds a single row."""
    alice.execute(ADD_TICKETS, [7, 3000])
    work(connection)
    alice.execute("UPDATE tickets SET body = body || '!' WHERE id <= 200")
    assert in_one_call(connection, "seq_tup_read + idx_tup_fetch", "answer_row") < 5_000


def test_plans_that_were_made_for_few_rows_serve_many(connection: Connection, alice: Connection) -> None:
    """A session plans once, and may go through all rows that it finds then."""
    work(connection)
    for schema in ("loracomp", "public"):
        tables = value(connection, "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class WHERE relkind = 'r'"
                       f" AND relnamespace = '{schema}'::regnamespace")  # fmt: skip
        connection.execute(f"VACUUM ANALYZE {tables}".encode())
    alice.execute(ADD_TICKETS, [7, 7])
    work(connection)
    connection.execute(
        "INSERT INTO loracomp.answer_row (declaration_id, key, status, job_id, prompt_hash)"
        " SELECT d.id, ARRAY['x' || i], 'waiting', 1000000 + i, ''"
        " FROM loracomp.declaration AS d, generate_series(1, 40000) AS i"
    )
    connection.execute("INSERT INTO loracomp.ended_job (job_id) SELECT 1000000 + i FROM generate_series(1, 40000) AS i")
    alice.execute(ADD_TICKETS, [8, 9])
    jobs = keep_and_claim(connection)
    assert len(jobs) == 2
    record(connection, tokens(jobs), [{"job_id": job.id, "output": "not urgent"} for job in jobs])
    keep(connection)
    assert shown(alice)[9] == ("answered", "not urgent")
    connection.execute("DELETE FROM loracomp.ended_job")


def tokens(jobs: tuple[Job, ...]) -> dict[int, int]:
    return {job.id: job.lease_token for job in jobs}


def expire(connection: Connection) -> None:
    """Leases of jobs whose answers could not be recorded because their submitter was cancelling them."""
    connection.execute("UPDATE loracomp.job SET lease_expires_at = now() - interval '1 s' WHERE status = 'running'")


FOR_EVERYBODY = {
    "bob": ("SELECT * FROM loracomp.queue_health", "SELECT * FROM loracomp.list_answers()"),
    "wendy": ("SELECT * FROM loracomp.database_metrics()", "SELECT loracomp.rows_wait()"),
    "adam": (
        "SELECT * FROM loracomp.worker_demand()",
        "SELECT * FROM loracomp.list_answers()",
        "SELECT * FROM loracomp.check_health()",
    ),
}


@pytest.mark.parametrize("locked", ["parts", "first_part", "last_part"])
def test_a_locked_partition_holds_up_nobody_who_asks_how_much_waits(
    connection: Connection, alice: Connection, database: str, locked: str
) -> None:
    alice.execute("CREATE TABLE parts (id integer PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    alice.execute("CREATE TABLE first_part PARTITION OF parts FOR VALUES FROM (0) TO (10)")
    alice.execute("CREATE TABLE other_parts PARTITION OF parts FOR VALUES FROM (10) TO (30) PARTITION BY RANGE (id)")
    alice.execute("CREATE TABLE last_part PARTITION OF other_parts FOR VALUES FROM (10) TO (30)")
    alice.execute("INSERT INTO parts SELECT i, 'late' FROM generate_series(1, 25) AS i")
    alice.execute("ANALYZE parts")
    alice.execute("SELECT loracomp.create_answers('partly', 'parts', '{body}', choices => '{late,early}')")
    with alice.transaction():
        alice.execute(f"LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE".encode())
        for name, queries in FOR_EVERYBODY.items():
            with connect(database, name) as other:
                other.execute("SET statement_timeout = '20s'")
                for query in queries:
                    other.execute(query.encode())
        (listed,) = alice.execute("SELECT state, rows FROM loracomp.list_answers('partly')")
    assert dict(listed) == {"state": "scanning all rows", "rows": 25}
    answer_all(connection)
    assert set(shown(alice, "partly").values()) == {("answered", "late")}
