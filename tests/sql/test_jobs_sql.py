"""The job protocol in SQL: who may move a job from which state to which, and what it costs."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from random import Random
from threading import Barrier

import psycopg
import pytest
from pgvector import Vector
from psycopg.types.json import Jsonb

from demo_fixtures import ROOT
from job_data import (
    BASE,
    RECORD_ROW,
    add_base_model,
    add_jobs,
    claim,
    ended,
    expire_leases,
    job,
    keep,
    prediction_row,
    record_predictions,
    statuses,
    wait_for_a_lock,
)
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.database.tables import DIMENSIONS
from loracomp.database.tables import job as jobs_table
from loracomp.errors import RefusedError
from loracomp.records import Failure, Job
from loracomp.worker import recorder
from loracomp.worker.leases import release_jobs, renew_leases, what_waits
from loracomp.worker.recorder import fail_jobs
from people_fixtures import value
from worker_helpers import wait_until


def submit(connection: Connection, prompt: str = "a", **arguments: object) -> int:
    named = "".join(f", {name} => %({name})s" for name in arguments)
    statement = f"SELECT loracomp.submit_job(%(prompt)s{named}) AS id"
    row = connection.execute(statement.encode(), {"prompt": prompt, **arguments}).fetchone()
    assert row is not None
    return row["id"]


def claim_when_due(connection: Connection, lease_s: float = 60) -> list[Job]:
    """The first claim that is not empty."""
    claimed: list[Job] = []
    wait_until(lambda: claimed.extend(claim(connection, 8, lease_s=lease_s)) or claimed)
    return claimed


# --- claim


def test_a_plain_insert_is_filled_and_claimed(connection: Connection):
    (job_id,) = add_jobs(connection, "why?")
    (claimed,) = claim(connection)
    assert (claimed.id, claimed.prompt, claimed.choices, claimed.max_new_tokens) == (job_id, "why?", None, 64)
    row = job(connection, job_id)
    assert (row["status"], row["attempts"], row["worker"], row["base_model"]) == ("running", 1, "w", BASE)
    assert row["lease_expires_at"] - row["claimed_at"] == timedelta(seconds=60)


def test_a_claim_says_how_text_is_drawn(connection: Connection):
    add_jobs(connection, "greedy")
    submit(connection, "drawn", temperature=0.7, top_p=0.9, seed=2**62)
    greedy, drawn = claim(connection)
    assert (greedy.temperature, greedy.top_p, greedy.seed) == (0, 1, None)
    assert (drawn.temperature, drawn.top_p, drawn.seed) == (0.7, 0.9, 2**62)


def test_choices_and_routes_are_given_no_length(connection: Connection):
    add_jobs(connection, "a", choices=["x", "y"])
    add_jobs(connection, "b", kind="route")
    scored, routed = claim(connection)
    assert (scored.choices, scored.max_new_tokens) == (("x", "y"), None)
    assert (routed.kind, routed.max_new_tokens) == ("route", None)


def test_priority_comes_before_the_time_of_the_insert(connection: Connection):
    add_jobs(connection, "first")
    for priority in (1, 2):
        add_jobs(connection, f"priority {priority}", priority=priority)
    add_jobs(connection, "in an hour", run_at=datetime.now(UTC) + timedelta(hours=1), priority=10)
    assert [each.prompt for each in claim(connection)] == ["priority 2", "priority 1", "first"]


@pytest.mark.parametrize("priority", [-1, -10])
def test_a_backfill_waits_behind_its_submitters_own_work_and_not_for_ever(connection: Connection, priority: int):
    bulk(connection, 300, priority=priority)
    assert len(claim(connection, 8)) == 8  # nothing else is due
    for step in range(3):
        (live,) = add_jobs(connection, f"live {step}", submitted_by="bulk")
        assert [each.id for each in claim(connection, 8)] == [live]
    connection.execute("UPDATE loracomp.job SET run_at = now() - interval '999 minutes' WHERE status = 'queued'")
    add_jobs(connection, *["live"] * 16, submitted_by="bulk")
    assert {each.prompt for each in claim(connection, 8)} == {"live"}
    connection.execute("UPDATE loracomp.job SET run_at = now() - interval '1001 minutes' WHERE background")
    assert [each.prompt for each in claim(connection, 32)] == ["live"] * 8 + ["x"] * 24


def test_old_work_leaves_the_background_though_newer_work_stands_before_it(connection: Connection):
    (old,) = add_jobs(connection, "old", priority=-10)
    bulk(connection, 20, priority=-1)
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # time passes, and no trigger sees it
        connection.execute("UPDATE loracomp.job SET run_at = now() - interval '1001 minutes' WHERE id = %s", (old,))
    assert [each.id for each in claim(connection, 8)] == [old]


def test_a_queued_job_goes_into_the_background_and_back(connection: Connection):
    moved, other = add_jobs(connection, "moved", "other")
    for priority, first in ((-1, other), (0, moved)):
        connection.execute("SELECT loracomp.set_priority(%s, ids => ARRAY[%s::bigint])", (priority, moved))
        add_jobs(connection, "another")
        assert [each.id for each in claim(connection, 1)] == [first]
        connection.execute("DELETE FROM loracomp.job WHERE prompt = 'another'")


def test_nobody_waits_for_another_ones_schedule(connection: Connection):
    """Twenty thousand jobs at the same second, and one of bob's a second later."""
    bulk(connection, 2000, "ann", run_at=datetime.now(UTC) + timedelta(hours=1))
    (bobs,) = add_jobs(connection, "b", submitted_by="bob", run_at=datetime.now(UTC) + timedelta(hours=1))
    connection.execute("UPDATE loracomp.job SET run_at = now() - interval '1 second' WHERE id <> %s", (bobs,))
    connection.execute("UPDATE loracomp.job SET run_at = now() WHERE id = %s", (bobs,))
    keep(connection)
    assert not job(connection, bobs)["scheduled"]


@pytest.mark.parametrize("rows", [0, 1, 1000], ids="{} rows in the statistics".format)
@pytest.mark.parametrize("how", ["woken", "moved"])
def test_each_job_takes_one_place_whatever_plan_the_statistics_lead_to(connection: Connection, how: str, rows: int):
    """After a purge and a vacuum, they say that the table is almost empty."""
    with connection.transaction(force_rollback=True):
        bulk(connection, 20, run_at=datetime.now(UTC) + timedelta(hours=1 if how == "woken" else -1))
        connection.execute("UPDATE loracomp.job SET run_at = now()")
        connection.execute(
            "UPDATE pg_class SET relpages = 1000, reltuples = %s WHERE oid = %s::regclass", (rows, "loracomp.job")
        )
        if how == "woken":
            connection.execute("SELECT loracomp.wake_jobs()")
        else:
            connection.execute("SELECT loracomp.set_priority(3, ids => ARRAY(SELECT id FROM loracomp.job))")
        places = [row["place"] for row in connection.execute("SELECT place FROM loracomp.job ORDER BY place")]
        assert places == [*range(places[0], places[0] + 20)]


@pytest.mark.parametrize("rows", [0, 1, 1000], ids="{} rows in the statistics".format)
def test_recording_reads_only_the_jobs_of_its_batch_whatever_the_statistics_say(connection: Connection, rows: int):
    read = "SELECT seq_tup_read + idx_tup_fetch AS n FROM pg_stat_xact_user_tables WHERE relname = 'job'"
    with connection.transaction(force_rollback=True):
        bulk(connection, 2000)
        connection.execute(
            "UPDATE pg_class SET relpages = 1000, reltuples = %s WHERE oid = %s::regclass", (rows, "loracomp.job")
        )
        jobs = claim(connection, 20)
        before = connection.execute(read).fetchone()["n"]
        assert len(record_predictions(connection, jobs, [ended(each.id) for each in jobs])) == 20
        assert connection.execute(read).fetchone()["n"] - before < 10 * len(jobs)


def test_jobs_that_cost_much_to_wake_or_rescue_are_woken_in_parts(connection: Connection):
    """Each UPDATE checks all constraints of the row again, which for a long prompt takes milliseconds."""
    long = "a" + " " * 999_999
    later = datetime.now(UTC) + timedelta(hours=1)
    connection.execute(
        "INSERT INTO loracomp.job (prompt, submitted_by, run_at) SELECT %s, 'ann', %s FROM generate_series(1, 200)",
        (long, later),
    )
    (bobs,) = add_jobs(connection, "b", submitted_by="bob", run_at=later)
    connection.execute("UPDATE loracomp.job SET run_at = now()")
    for step in ("wake_jobs", "rescue_jobs"):
        began = time.monotonic()
        (row,) = connection.execute(f"SELECT loracomp.{step}() AS handled".encode())
        assert 0 < row["handled"] < 201 or time.monotonic() - began < 1  # it ends soon after a fifth of a second
        while job(connection, bobs)["scheduled"]:  # a call begins with a submitter drawn at random
            assert connection.execute("SELECT loracomp.wake_jobs() AS handled").fetchone()["handled"]
        connection.execute(
            "UPDATE loracomp.job SET status = 'running', scheduled = false, worker = 'w', claimed_at = now(),"
            " lease_token = 1, lease_expires_at = now() - interval '1 second'"
        )


def test_a_scheduled_job_that_somebody_has_locked_holds_up_no_other(connection: Connection, database: str):
    ids = add_jobs(connection, *map(str, range(5)), submitted_by="ann", run_at=datetime.now(UTC) + timedelta(hours=1))
    connection.execute("UPDATE loracomp.job SET run_at = now()")
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT FROM loracomp.job WHERE id = ANY (%s) FOR UPDATE", (ids[:3],))
        assert ids_of(claim(connection)) == ids[3:]
    assert ids_of(claim(connection)) == ids[:3]


def test_waking_reads_few_of_many_scheduled_jobs_that_somebody_keeps_locked(connection: Connection, database: str):
    """A submitter who cancels jobs in a transaction left open locks them in this way."""
    add_jobs(connection, *["a"] * 3000, submitted_by="ann", run_at=datetime.now(UTC) + timedelta(hours=1))
    connection.execute("UPDATE loracomp.job SET run_at = now()")
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT FROM loracomp.job FOR UPDATE")
        with connection.transaction():
            before = rows_read(connection)
            connection.execute("SELECT loracomp.wake_jobs()")
            read = rows_read(connection) - before
        assert read < 1000


def rows_read(connection: Connection) -> int:
    """Rows of loracomp.job that the session has read."""
    statement = "SELECT idx_tup_fetch + seq_tup_read AS rows FROM pg_stat_xact_user_tables WHERE relname = 'job'"
    (row,) = connection.execute(statement)
    return int(row["rows"])


def test_a_claim_is_asked_for_a_job_that_failed_in_its_turn(connection: Connection):
    """A retry waits for its time, and then for the turn of its submitter's retries."""
    (failed,) = add_jobs(connection, "a", submitted_by="ann")
    (held,) = claim(connection)
    assert fail_jobs(connection, [held], [Failure(failed, "c", "m", retry=True)]) == {failed}
    row = job(connection, failed)
    assert (row["status"], row["scheduled"], row["place"]) == ("queued", True, None)
    assert claim(connection) == ()
    connection.execute("UPDATE loracomp.job SET run_at = now()")
    assert ids_of(claim(connection)) == [failed]


def test_a_worker_claims_jobs_of_its_base_model_only(connection: Connection):
    add_base_model(connection, "other", default=False)
    add_jobs(connection, "a")
    (other,) = add_jobs(connection, "b", base_model="other")
    assert [each.id for each in claim(connection, base_model="other")] == [other]


@pytest.mark.parametrize("expired_leases", [0, 1])
def test_a_worker_leaves_kinds_that_it_does_not_know_to_others(connection: Connection, expired_leases: int):
    """A later release may have such kinds. Otherwise their jobs would use up their attempts in seconds."""
    (unknown,) = add_jobs(connection, "a", kind="route")
    (known,) = add_jobs(connection, "b")
    connection.execute("UPDATE loracomp.job SET expired_leases = %s WHERE id = %s", (expired_leases, unknown))
    older = "SELECT id FROM loracomp.claim_jobs('w', %s, 8, '1 minute', kinds => '{predict,measure}')"
    assert [row["id"] for row in connection.execute(older, (BASE,))] == [known]
    assert [each.id for each in claim(connection)] == [unknown]


def test_a_claim_skips_what_another_transaction_claims(connection: Connection, database: str):
    ids = add_jobs(connection, *"abcd")
    with db.connect(database) as other, other.transaction():
        assert [each.id for each in claim(other, 2)] == ids[:2]
        assert [each.id for each in claim(connection, 4)] == ids[2:]


def test_many_claims_at_once_claim_each_job_once(connection: Connection, database: str):
    ids = add_jobs(connection, *map(str, range(200)))

    def claim_all(name: int) -> list[int]:
        with db.connect(database) as own:
            return [each.id for batch in iter(lambda: claim(own, 7, worker=str(name)), ()) for each in batch]

    with ThreadPoolExecutor(4) as pool:
        claimed = [job_id for part in pool.map(claim_all, range(4)) for job_id in part]
    assert sorted(claimed) == ids


def test_a_claim_has_a_token_of_its_own_that_nobody_guesses(connection: Connection):
    """A worker that counts on from its own tokens would answer what others hold."""
    add_jobs(connection, *map(str, range(33)))
    first, second = claim(connection, 2)
    assert first.lease_token == second.lease_token
    tokens = [job.lease_token for batch in iter(lambda: claim(connection, 1), ()) for job in batch]
    bits = [token >> place & 1 for token in tokens for place in range(64)]
    assert len(set(tokens)) == 31
    assert 800 < sum(bits) < 1200  # of 1984; four standard deviations are 89


# --- turns


def bulk(connection: Connection, jobs: int, submitter: str = "bulk", **columns: object) -> None:
    """Insert many jobs of one submitter by one statement."""
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", %({name})s" for name in columns)
    connection.execute(
        f"INSERT INTO loracomp.job (prompt, submitted_by{names})"
        f" SELECT 'x', %(submitter)s{values} FROM generate_series(1, %(jobs)s)".encode(),
        {"submitter": submitter, "jobs": jobs, **columns},
    )


def submitters(connection: Connection, batch: tuple[Job, ...]) -> Counter[str]:
    rows = connection.execute("SELECT submitted_by FROM loracomp.job WHERE id = ANY (%s)", ([j.id for j in batch],))
    return Counter(row["submitted_by"] for row in rows)


def test_a_claim_is_shared_out_among_submitters(connection: Connection):
    bulk(connection, 100)
    bulk(connection, 3, "ann")
    bulk(connection, 20, "bob")
    assert submitters(connection, claim(connection, 15)) == {"bulk": 6, "ann": 3, "bob": 6}


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_bulk_keeps_nobody_waiting_for_more_than_a_claim(connection: Connection, batch_size: int):
    bulk(connection, 200)
    claim(connection, batch_size)
    for name in ("ann", "bob"):
        bulk(connection, 1, name)
        claimed = submitters(connection, claim(connection, batch_size)) + submitters(
            connection, claim(connection, batch_size)
        )
        assert claimed[name] == 1


def test_more_submitters_than_a_batch_holds_are_served_in_turn(connection: Connection):
    names = [f"s{number:02}" for number in range(11)]
    for name in names:
        bulk(connection, 30, name)
    served: Counter[str] = Counter()
    for _ in range(22):
        served += submitters(connection, claim(connection, 3))
        assert max(served.values()) - min(served[name] for name in names) <= 2


def test_retries_take_turns_with_the_jobs_of_others_and_of_their_submitter(connection: Connection):
    bulk(connection, 60, "ann")
    failed = claim(connection, 60)
    assert len(fail_jobs(connection, failed, [Failure(each.id, "c", "m", retry=True) for each in failed])) == 60
    connection.execute("UPDATE loracomp.job SET run_at = now() WHERE status = 'queued'")
    bulk(connection, 60, "bob")
    bulk(connection, 60, "ann")
    claimed = claim(connection, 30)
    assert submitters(connection, claimed) == {"ann": 20, "bob": 10}
    assert Counter(each.attempts for each in claimed) == {1: 20, 2: 10}


def test_a_step_of_priority_is_worth_a_thousand_turns(connection: Connection):
    bulk(connection, 2000, "calm")
    bulk(connection, 1100, "urgent", priority=1)
    assert submitters(connection, claim(connection, 1000)) == {"urgent": 1000}
    assert submitters(connection, claim(connection, 200)) == {"urgent": 100, "calm": 100}


@pytest.mark.parametrize("priority", [1, 10, -3])
def test_whoever_comes_later_takes_turns_at_the_same_priority(connection: Connection, priority: int):
    """A later submitter doesn't begin at the place where the others began."""
    bulk(connection, 100, "ann", priority=priority)
    claim(connection, 30)
    bulk(connection, 20, "bob", priority=priority)
    assert submitters(connection, claim(connection, 20)) == {"ann": 10, "bob": 10}
    claim(connection, 40)
    bulk(connection, 20, "eve", priority=priority)
    assert submitters(connection, claim(connection, 20)) == {"ann": 10, "eve": 10}


def test_jobs_that_are_moved_take_turns_at_their_new_priority(connection: Connection):
    bulk(connection, 50, "ann", priority=2)
    claim(connection, 20)
    bulk(connection, 50, "bob")
    moved = "SELECT loracomp.set_priority(2, ids => ARRAY(SELECT id FROM loracomp.job WHERE submitted_by = 'bob'))"
    connection.execute(moved.encode())
    assert submitters(connection, claim(connection, 20)) == {"ann": 10, "bob": 10}


def test_the_same_priority_again_moves_no_job_that_has_left_the_background(connection: Connection):
    """The keeper moves old work out of it after 1,000 minutes."""
    bulk(connection, 1, priority=-5)
    connection.execute("UPDATE loracomp.job SET run_at = now() - interval '1 day'")
    connection.execute("SELECT loracomp.wake_jobs()")
    before = connection.execute("SELECT background, place FROM loracomp.job").fetchone()
    assert before["background"] is False
    connection.execute("SELECT loracomp.set_priority(-5, ids => ARRAY(SELECT id FROM loracomp.job))")
    assert connection.execute("SELECT background, place FROM loracomp.job").fetchone() == before


def test_counters_go_with_the_roles_that_used_them(connection: Connection):
    counters = "SELECT count(*) AS number FROM pg_sequences WHERE schemaname = 'loracomp_parts'"
    while connection.execute("SELECT loracomp.drop_counters() AS dropped").fetchone()["dropped"]:
        pass  # a call drops some of those that other tests have left
    before = connection.execute(counters).fetchone()["number"]
    for name in ("postgres", "gone"):
        bulk(connection, 2, name)
        bulk(connection, 2, name, priority=-1)
    connection.execute("SELECT loracomp.set_queue_limits(7)")
    try:
        bulk(connection, 1, "gone")
    finally:
        connection.execute("SELECT loracomp.set_queue_limits(NULL)")
    assert connection.execute(counters).fetchone()["number"] >= before + 3
    connection.execute("SELECT loracomp.purge_jobs('1 day')")
    assert connection.execute(counters).fetchone()["number"] >= before + 3, "their jobs wait"
    connection.execute(
        "SELECT loracomp.cancel_jobs(ids => ARRAY(SELECT id FROM loracomp.job WHERE submitted_by = 'gone'))"
    )
    connection.execute("SELECT loracomp.purge_jobs('1 day')")
    assert connection.execute(counters).fetchone()["number"] <= before + 2
    bulk(connection, 2, "gone")
    assert len(claim(connection, 16)) == 4


def test_counters_go_with_their_base_model(connection: Connection):
    counters = "SELECT count(*) AS number FROM pg_sequences WHERE schemaname = 'loracomp_parts'"
    while connection.execute("SELECT loracomp.drop_counters() AS dropped").fetchone()["dropped"]:
        pass  # a call drops some of those that other tests have left
    before = connection.execute(counters).fetchone()["number"]
    add_base_model(connection, "passing", default=False)
    assert connection.execute(counters).fetchone()["number"] > before
    bulk(connection, 2, "postgres", base_model="passing")
    connection.execute("SELECT loracomp.drop_counters()")
    assert len(claim(connection, base_model="passing")) == 2
    connection.execute("DELETE FROM loracomp.job")
    connection.execute("SELECT loracomp.remove_base_model('passing')")
    connection.execute("SELECT loracomp.purge_jobs('1 day')")
    assert connection.execute(counters).fetchone()["number"] <= before


def test_dropping_counters_waits_for_nobody_and_nobody_waits_for_it(connection: Connection, database: str):
    """The session of a role that was dropped goes on."""
    bulk(connection, 2, "gone")
    connection.execute("SELECT loracomp.cancel_jobs(ids => ARRAY(SELECT id FROM loracomp.job))")
    with db.connect(database) as gone, gone.transaction(), db.connect(database) as cleaner, cleaner.transaction():
        bulk(gone, 2, "gone")
        gone.execute("SET statement_timeout = '20s'")
        connection.execute("SET statement_timeout = '20s'")
        cleaner.execute("SELECT loracomp.drop_counters()")
        bulk(connection, 2, "other")
        bulk(gone, 2, "gone")
        assert len(claim(connection, 16)) == 2
    assert len(claim(connection, 16)) == 4


def test_roles_with_the_same_first_52_bytes_share_no_counter_of_retries(connection: Connection):
    """Names of roles have up to 63 bytes, of which a name with 'retries of ' before it keeps 52."""
    names = ["r" * 62 + last for last in "ab"]
    for name, jobs in zip(names, (30, 1), strict=True):
        bulk(connection, jobs, name)
    held = claim(connection, 31)
    failures = [Failure(each.id, "code", "message", retry=True) for each in held]
    assert len(fail_jobs(connection, held, failures)) == 31
    connection.execute("UPDATE loracomp.job SET run_at = now() - interval '1 second'")
    connection.execute("SELECT loracomp.wake_jobs()")
    assert submitters(connection, claim(connection, 4))[names[1]] == 1


def test_a_lock_that_a_login_holds_keeps_no_counter_of_a_level_from_being_made(connection: Connection, database: str):
    """Without it, whoever comes later would come first."""
    with db.connect(database) as login:
        login.execute(
            "SELECT pg_advisory_lock(hashtextextended(loracomp.counter_name(100, false, level, ''), 0))"
            " FROM generate_series(0, 10) AS level"
        )
        connection.execute(
            "INSERT INTO loracomp.base_model"
            " (id, name, source, fingerprint, architecture, context_length, parameter_count, modules, is_default)"
            " OVERRIDING SYSTEM VALUE"
            " VALUES (100, 'new', 'nowhere', repeat('2', 64), 'Toy', 128, 1, '{}', false)"
        )
        bulk(connection, 100, "ann", base_model="new")
        claim(connection, 30, base_model="new")
        bulk(connection, 20, "bob", base_model="new")
        assert submitters(connection, claim(connection, 20, base_model="new")) == {"ann": 10, "bob": 10}


def test_no_lock_that_a_login_holds_takes_a_new_submitters_turn_away(connection: Connection, database: str):
    with db.connect(database) as login:
        login.execute(
            "SELECT pg_advisory_lock(hashtextextended(loracomp.counter_name(b.id, false, 7, who), 0))"
            " FROM loracomp.base_model AS b CROSS JOIN unnest(ARRAY['ann', 'eve']) AS who"
        )
        bulk(connection, 300, "eve", priority=7)
        bulk(connection, 1, "ann", priority=7)
        assert submitters(connection, claim(connection, 2)) == {"ann": 1, "eve": 1}


def test_submitters_whose_counters_are_just_being_made_take_turns(connection: Connection, database: str):
    """Each has another transaction open, in which its first jobs were inserted."""
    with db.connect(database) as eve, db.connect(database) as ann, eve.transaction(), ann.transaction():
        bulk(eve, 1, "eve", priority=7)
        bulk(ann, 1, "ann", priority=7)
        connection.execute("SET statement_timeout = '20s'")
        bulk(connection, 300, "eve", priority=7)
        bulk(connection, 1, "ann", priority=7)
        assert submitters(connection, claim(connection, 2)) == {"ann": 1, "eve": 1}
        with db.connect(database) as again:
            bulk(again, 1, "eve", priority=7)  # goes on behind the 300
        assert submitters(connection, claim(connection, 299)) == {"eve": 299}
        assert connection.execute("SELECT max(place) - min(place) AS n FROM loracomp.job").fetchone()["n"] == 300


def test_a_suspect_gets_its_turn_alone_and_holds_nobody_up(connection: Connection):
    bulk(connection, 30, "ann")
    bulk(connection, 30, "bob")
    connection.execute(
        "UPDATE loracomp.job SET expired_leases = 1 WHERE id IN"
        " (SELECT id FROM loracomp.job WHERE submitted_by = 'bob' ORDER BY id LIMIT 3)"
    )
    batches = [submitters(connection, claim(connection, 4)) for _ in range(6)]
    alone = [batch for batch in batches if sum(batch.values()) == 1]
    assert alone == [{"bob": 1}] * 3
    assert sum(batches, Counter())["ann"] >= 6


def test_concurrent_claims_of_many_submitters_are_full_and_claim_each_job_once(connection: Connection, database: str):
    bulk(connection, 400)
    for number in range(40):
        bulk(connection, 2, f"s{number}")
    sizes: list[int] = []

    def claim_some(name: int) -> list[int]:
        with db.connect(database) as own:
            batches = [claim(own, 8, worker=str(name)) for _ in range(12)]
        sizes.extend(map(len, batches))
        return [each.id for batch in batches for each in batch]

    with ThreadPoolExecutor(3) as pool:
        claimed = [job_id for part in pool.map(claim_some, range(3)) for job_id in part]
    assert len(claimed) == len(set(claimed))
    assert sizes.count(8) >= 30  # of 36: now and then three take the same first ones at the same moment


def test_a_job_for_later_is_claimed_when_its_time_comes(connection: Connection):
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    (job_id,) = add_jobs(connection, "a", run_at=soon, priority=10)
    assert [each.id for each in claim_when_due(connection)] == [job_id]
    assert job(connection, job_id)["claimed_at"] >= soon


TOUCHED = """
SELECT pg_stat_get_xact_blocks_fetched(c.oid) AS blocks, pg_stat_get_xact_tuples_returned(c.oid) AS rows
FROM pg_class AS c WHERE c.oid IN ('loracomp.job'::regclass, 'loracomp.job_queue'::regclass) ORDER BY c.relname
"""


def touched_by_a_claim(connection: Connection) -> list[int]:
    """Blocks fetched and rows read of the table and of the queue's index, by a claim that is then undone."""
    with connection.transaction(force_rollback=True):
        before = connection.execute(TOUCHED).fetchall()
        assert len(claim(connection)) == 16
        after = connection.execute(TOUCHED).fetchall()
    return [now[key] - then[key] for then, now in zip(before, after, strict=True) for key in ("blocks", "rows")]


@pytest.mark.parametrize("statistics", ["of an empty table", "up to date"])
def test_a_claim_touches_no_more_where_the_queue_is_deep(connection: Connection, statistics: str):
    later = datetime.now(UTC) + timedelta(hours=1)
    connection.execute("VACUUM ANALYZE loracomp.job")
    bulk(connection, 100)
    bulk(connection, 100, "other")
    few = touched_by_a_claim(connection)
    bulk(connection, 20_000)
    bulk(connection, 5_000, run_at=later)
    bulk(connection, 5_000, run_at=later, priority=10)
    if statistics == "up to date":
        connection.execute("ANALYZE loracomp.job")
    with db.connect(connection.info.dsn) as fresh:
        many = [touched_by_a_claim(fresh) for _ in range(7)][-1]  # by then with a plan for any parameters
    # An index may grow by a level, and what is undone leaves dead rows at the head.
    assert all(after <= 3 * before + 200 for before, after in zip(few, many, strict=True)), (few, many)


def test_a_claim_reads_few_jobs_of_each_of_many_submitters(connection: Connection):
    connection.execute("VACUUM ANALYZE loracomp.job")
    for number in range(60):
        bulk(connection, 2, f"s{number}")
    few = touched_by_a_claim(connection)
    for number in range(60):
        bulk(connection, 100, f"s{number}")
    many = touched_by_a_claim(connection)
    assert all(after <= 2 * before + 100 for before, after in zip(few, many, strict=True)), (few, many)


# --- under a held snapshot


READ = """
SELECT relname, pg_stat_get_xact_tuples_returned(oid) AS rows
FROM pg_class WHERE relnamespace = 'loracomp'::regnamespace
"""
DEAD = 400


@pytest.fixture
def snapshot(connection: Connection, database: str) -> Iterator[None]:
    """A reader's snapshot, which keeps dead entries from being removed, and many dead entries."""
    with db.connect(database) as reader, reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT FROM loracomp.job LIMIT 1")
        for name in ("ann", "bob", "cid"):
            bulk(connection, DEAD, name)
            bulk(connection, DEAD, name, priority=-1)
        for _ in range(6):
            jobs = claim(connection, DEAD)
            record_predictions(connection, jobs, [ended(each.id) for each in jobs])
        yield


def read_by_a_batch(connection: Connection) -> dict[str, int]:
    """Index entries and rows that a claim and its record read, of each relation."""
    with connection.transaction():
        before = {row["relname"]: row["rows"] for row in connection.execute(READ)}
        jobs = claim(connection, 16, from_start=False)
        assert len(record_predictions(connection, jobs, [ended(each.id) for each in jobs])) == 16
        return {row["relname"]: row["rows"] - before[row["relname"]] for row in connection.execute(READ)}


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize("priority", [0, -10], ids=["everyday", "in the background"])
@pytest.mark.parametrize("names", [("ann",), ("ann", "bob", "new")], ids=["one submitter", "three"])
def test_claims_that_read_on_read_no_more_the_more_jobs_have_ended(
    connection: Connection, names: tuple[str, ...], priority: int
):
    for name in names:
        bulk(connection, 600, name, priority=priority)
    read = [read_by_a_batch(connection) for _ in range(36)]
    few, many = read[5], read[35]
    assert {name: (few[name], rows) for name, rows in many.items() if rows > 1.5 * few[name] + 50} == {}
    assert few["job_queue"] < 100


@pytest.mark.usefixtures("snapshot")
def test_new_jobs_of_every_submitter_are_found_by_a_claim_that_reads_on(connection: Connection):
    bulk(connection, 50, "ann")
    claim(connection, 8)
    for name in ("aaa", "bob", "new", "zoe"):
        (added,) = add_jobs(connection, "x", submitted_by=name)
        assert added in {each.id for each in claim(connection, 8, from_start=False)}
    while claim(connection, 8, from_start=False):
        pass
    assert add_jobs(connection, "soon", submitted_by="ann") == [
        each.id for each in claim(connection, 8, from_start=False)
    ]


@pytest.mark.parametrize("priority", [-1, 5], ids=["in the background", "urgent"])
def test_the_first_jobs_of_a_higher_level_are_found_by_a_claim_that_reads_on(connection: Connection, priority: int):
    bulk(connection, 50, "ann", priority=priority)
    assert [len(claim(connection, 8, from_start=False)) for _ in range(7)] == [8, 8, 8, 8, 8, 8, 2]


def test_what_joins_in_front_is_found_by_a_look_from_the_start(connection: Connection, database: str):
    claim(connection)  # as an idle worker has
    with db.connect(database) as slow, slow.transaction():
        late = add_jobs(slow, "late", submitted_by="ann")
        bulk(connection, 60, "bob")
        first = claim(connection, 8)
        assert len(claim(connection, 8, from_start=False)) == 8
    release_jobs(connection, first[:2])
    urgent = add_jobs(connection, "urgent", submitted_by="ann", priority=9)
    (stalled,) = claim(connection, 1, lease_s=0.05, worker="stalled", from_start=False)
    later = add_jobs(connection, "later", run_at=datetime.now(UTC) + timedelta(seconds=0.3))
    in_front = {*late, *urgent, *(each.id for each in first[:2])}
    assert not in_front & {each.id for each in claim(connection, 9, from_start=False)}
    wait_until(lambda: job(connection, later[0])["run_at"] < datetime.now(UTC))
    claimed = {each.id for each in claim(connection, 12)}
    assert in_front | set(later) <= claimed
    assert job(connection, stalled.id)["expired_leases"] == 1


def test_places_are_those_of_one_base_model(connection: Connection):
    add_base_model(connection, "other", default=False)
    bulk(connection, 500, "ann")
    claim(connection, 100)
    bulk(connection, 8, "ann", base_model="other")
    bulk(connection, 8, "bob", base_model="other")
    claimed = claim(connection, 4, base_model="other")
    assert submitters(connection, claimed) == {"ann": 2, "bob": 2}


class FairQueue:
    """What places should be: at each priority each submitter's count on, and none begins before what was claimed.

    It may begin 1,000 places a step before what was claimed at lower priorities.
    """

    def __init__(self) -> None:
        self.claimed: dict[int, int] = {0: 0}
        self.counts: dict[tuple[str, int], int] = {}
        self.waiting: list[tuple[int, int, int]] = []

    def insert(self, name: str, job_id: int, priority: int) -> None:
        before = max(place - 1000 * max(0, priority - other) for other, place in self.claimed.items())
        place = self.counts[name, priority] = max(self.counts.get((name, priority), before), before) + 1
        self.waiting.append((place, job_id, priority))

    def claim(self, most: int) -> list[int]:
        batch = sorted(self.waiting)[:most]
        self.waiting = sorted(self.waiting)[most:]
        for place, _, priority in batch:
            self.claimed[priority] = max(self.claimed.get(priority, place), place)
        return [job_id for _, job_id, _ in batch]


@pytest.mark.parametrize("priorities", [(0,), (0, 0, 0, 1, 1, 3, 10)], ids=["reads on", "looks from the start"])
@pytest.mark.parametrize("seed", range(4))
def test_jobs_are_claimed_as_by_a_model_of_fair_queueing(
    connection: Connection, seed: int, priorities: tuple[int, ...]
):
    drawn = Random(seed)
    model = FairQueue()
    names = [f"s{number}" for number in range(drawn.choice((1, 3, 12)))]
    for _ in range(40):
        name, priority = drawn.choice(names), drawn.choice(priorities)
        for job_id in add_jobs(connection, *"x" * drawn.choice((1, 2, 20)), submitted_by=name, priority=priority):
            model.insert(name, job_id, priority)
        most = drawn.choice((0, 1, 8, 16))
        assert [each.id for each in claim(connection, most, from_start=len(priorities) > 1)] == model.claim(most)


TOUCHED_AT_ALL = """
SELECT sum(pg_stat_get_xact_blocks_fetched(c.oid))::integer AS blocks FROM pg_class AS c
WHERE c.oid = 'loracomp.job'::regclass
    OR c.oid IN (SELECT i.indexrelid FROM pg_index AS i WHERE i.indrelid = 'loracomp.job'::regclass)
"""


def touched_by_a_batch(connection: Connection) -> dict[str, int]:
    """Blocks of jobs that each step of a batch's life fetches; all is undone."""
    touched: dict[str, int] = {}

    def note(step: str, call: Callable[[], object]) -> None:
        before = connection.execute(TOUCHED_AT_ALL).fetchone()["blocks"]
        call()
        touched[step] = connection.execute(TOUCHED_AT_ALL).fetchone()["blocks"] - before

    with connection.transaction(force_rollback=True):
        jobs: list[Job] = []
        note("claim", lambda: jobs.extend(claim(connection, 8)))
        assert len(jobs) == 8
        vectors = [Vector([1.0, *[0.0] * (DIMENSIONS - 1)])] * 8
        route = "SELECT FROM loracomp.route_jobs(%s, %s)"
        note("route", lambda: connection.execute(route, ([each.id for each in jobs], vectors)))
        note("renew", lambda: renew_leases(connection, jobs, 60))
        note("record", lambda: record_predictions(connection, jobs, [ended(each.id) for each in jobs[:4]]))
        note("fail", lambda: fail_jobs(connection, jobs, [Failure(each.id, "c", "m") for each in jobs[4:6]]))
        note("release", lambda: release_jobs(connection, jobs[6:7]))
        expire_leases(connection)
        note("rescue", lambda: claim(connection, 0))
        note("look", lambda: what_waits(connection, BASE))
    return touched


def test_plans_made_when_the_queue_was_empty_do_for_a_full_one(connection: Connection):
    """A worker that waits for jobs keeps its plans in its session, until autovacuum analyses the table."""
    connection.execute("VACUUM ANALYZE loracomp.job")
    bulk(connection, 8)
    few = [touched_by_a_batch(connection) for _ in range(8)][-1]  # by then with a plan for any parameters
    bulk(connection, 20_000)
    many = touched_by_a_batch(connection)
    assert {step: blocks for step, blocks in many.items() if blocks > 1.5 * few[step] + 30} == {}, (few, many)


# --- leases


def test_a_lease_is_renewed_up_to_the_timeout(connection: Connection):
    (job_id,) = add_jobs(connection, "a", timeout_s=90)
    claimed = claim(connection, lease_s=60)
    assert renew_leases(connection, claimed, 60) == {job_id}
    connection.execute("UPDATE loracomp.job SET claimed_at = claimed_at - interval '50 seconds'")
    assert renew_leases(connection, claimed, 60) == {job_id}
    row = job(connection, job_id)
    assert timedelta(seconds=110) <= row["lease_expires_at"] - row["claimed_at"] < timedelta(seconds=180)
    connection.execute("UPDATE loracomp.job SET claimed_at = claimed_at - interval '50 seconds'")
    assert renew_leases(connection, claimed, 60) == set()


def test_a_lease_is_no_longer_than_twice_the_timeout(connection: Connection):
    (job_id,) = add_jobs(connection, "a", timeout_s=5)
    claimed = claim(connection, lease_s=60)
    for _ in range(2):
        row = job(connection, job_id)
        assert row["lease_expires_at"] - row["claimed_at"] == timedelta(seconds=10)
        assert renew_leases(connection, claimed, 60) == {job_id}


def test_renewing_and_recording_the_same_batch_do_not_deadlock(connection: Connection, database: str):
    add_jobs(connection, *map(str, range(400)))
    barrier = Barrier(2)

    def renew(batches: list[tuple]) -> None:
        with db.connect(database) as own:
            for batch in batches:
                barrier.wait(10)
                renew_leases(own, batch[::-1], 60)

    batches = [claim(connection, 100) for _ in range(4)]
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(renew, batches)
        for batch in batches:
            barrier.wait(10)
            assert len(record_predictions(connection, batch, [ended(each.id) for each in batch])) == 100
        renewing.result()


# --- rescue


def test_an_expiry_gives_the_attempt_back_to_a_batch_and_each_is_then_claimed_alone(connection: Connection):
    ids = add_jobs(connection, *"abc", max_attempts=1)
    claim(connection, 3)
    expire_leases(connection)
    for job_id in ids:
        (alone,) = claim(connection, 16)
        assert (alone.id, alone.attempts) == (job_id, 1)


def test_a_suspect_that_is_not_first_is_passed_by(connection: Connection):
    first, suspect, third = add_jobs(connection, *"abc")
    connection.execute("UPDATE loracomp.job SET expired_leases = 1 WHERE id = %s", (suspect,))
    assert [each.id for each in claim(connection)] == [first, third]
    assert [each.id for each in claim(connection)] == [suspect]


def test_beside_jobs_that_are_held_others_are_claimed_and_no_suspect(connection: Connection):
    ids = add_jobs(connection, *"abc")
    held = claim(connection, 2)
    assert [each.id for each in held] == ids[:2]
    held += claim(connection, 4, held=held)
    assert [each.id for each in held] == ids
    suspect, other = add_jobs(connection, *"de")
    connection.execute("UPDATE loracomp.job SET expired_leases = 1, priority = 9 WHERE id = %s", (suspect,))
    assert claim(connection, 4, held=held) == ()  # the suspect is first, and must be alone
    alone = claim(connection, 2)
    assert [each.id for each in alone] == [suspect]
    assert claim(connection, 4, held=alone) == ()  # nothing beside it
    assert [each.id for each in claim(connection, 4, worker="other", held=held[:1])] == [other]


def ids_of(jobs: tuple[Job, ...]) -> list[int]:
    return [each.id for each in jobs]


@pytest.fixture
def suspects(connection: Connection) -> list[int]:
    """Two jobs that must run alone, which were claimed together before."""
    ids = add_jobs(connection, "s", "t", submitted_by="ann")
    claim(connection)
    expire_leases(connection)
    keep(connection)
    return ids


@pytest.mark.parametrize("from_start", [True, False])
def test_what_stands_behind_a_suspect_is_not_claimed_beside_held_jobs(
    connection: Connection, suspects: list[int], from_start: bool
):
    """In this way the worker's jobs come to their end, and then it takes the suspect alone."""
    add_jobs(connection, "a", "b", submitted_by="bob")
    urgent = add_jobs(connection, "urgent", priority=1)
    held = claim(connection, 1)
    assert ids_of(held) == urgent
    assert claim(connection, held=held, from_start=from_start) == ()
    assert ids_of(claim(connection, from_start=from_start)) == suspects[:1]


def test_between_two_suspects_others_get_as_many_turns_as_a_worker_can_hold_jobs(
    connection: Connection, suspects: list[int]
):
    """A job that runs alone costs a worker as much time as all of these together."""
    bulk(connection, 1000, "bob")
    batches = [submitters(connection, claim(connection, 16)) for _ in range(8)]
    assert [batch["ann"] for batch in batches] == [1, 0, 0, 0, 0, 1, 0, 0]
    assert sum(batch["bob"] for batch in batches[1:5]) == 64


def test_suspects_get_their_turns_although_a_worker_is_always_busy(connection: Connection):
    """After as many jobs of others as two turns are worth, however long the queue."""
    held: tuple[Job, ...] = ()
    ids = add_jobs(connection, *"stu", submitted_by="ann")
    claim(connection, worker="dead")
    expire_leases(connection)
    bulk(connection, 3000, "bob")
    answered: list[int] = []
    while not {*ids} <= {*answered} and len(answered) < 1000:
        held += claim(connection, 4, held=held)
        done, held = held[:4], held[4:]  # it answers four while it claims as many
        record_predictions(connection, done, [ended(each.id) for each in done])
        answered += ids_of(done)
    assert len(answered) < 200


def test_priority_is_not_hidden_behind_a_suspect(connection: Connection, suspects: list[int]):
    held = claim(connection, 1, worker="other")
    assert ids_of(held) == suspects[:1]
    bulk(connection, 100, "bob")
    held = claim(connection, 20)
    (urgent,) = add_jobs(connection, "urgent", priority=1)
    assert ids_of(claim(connection, 1, held=held)) == [urgent]


def test_watched_jobs_are_noted_when_they_end_and_when_one_that_had_ended_is_queued(connection: Connection):
    """All else would wake the keeper for nothing."""

    def noted() -> int:
        return len(connection.execute("DELETE FROM loracomp.ended_job RETURNING job_id").fetchall())

    (job_id,) = add_jobs(connection, "a", watched=True)
    release_jobs(connection, claim(connection))
    connection.execute("SELECT loracomp.set_priority(5, ARRAY[%s])", (job_id,))
    held = claim(connection)
    fail_jobs(connection, held, [Failure(job_id, "code", "message", True)])
    connection.execute("UPDATE loracomp.job SET run_at = now()")
    claim(connection)
    assert noted() == 0
    connection.execute("SELECT loracomp.cancel_job(%s)", (job_id,))
    assert noted() == 1
    connection.execute("SELECT loracomp.retry_job(%s)", (job_id,))
    assert noted() == 1


def test_jobs_in_the_background_leave_a_worker_room_for_others(connection: Connection):
    add_jobs(connection, *"abcdef", priority=-1)
    held = claim(connection, 4)
    assert [each.background for each in held] == [True] * 4
    assert claim(connection, 4, held=held) == ()
    (everyday,) = add_jobs(connection, "g")
    assert [(each.id, each.background) for each in claim(connection, 4, held=held)] == [(everyday, False)]
    assert len(claim(connection, 4, held=held[:3])) == 1


def test_nothing_in_the_background_overtakes_a_suspect_of_everyday(connection: Connection, suspects: list[int]):
    add_jobs(connection, "in the background", priority=-1)
    (held_id,) = add_jobs(connection, "a", priority=1)
    held = claim(connection, 1)
    assert ids_of(held) == [held_id]
    assert claim(connection, held=held) == ()
    assert ids_of(claim(connection)) == suspects[:1]


def test_nobody_waits_for_a_suspect_that_somebody_keeps_locked(
    connection: Connection, database: str, suspects: list[int]
):
    others = add_jobs(connection, "a", "b", submitted_by="bob")
    with db.connect(database) as ann, ann.transaction():
        ann.execute("SELECT loracomp.cancel_jobs(ids => %s)", (suspects,))
        held = claim(connection, 1)
        assert ids_of(held + claim(connection, held=held)) == others


def test_of_suspects_with_the_same_place_the_one_that_has_cost_fewer_leases_runs_first(
    connection: Connection, suspects: list[int]
):
    connection.execute("UPDATE loracomp.job SET place = 100")
    connection.execute("UPDATE loracomp.job SET expired_leases = 2 WHERE id = %s", suspects[:1])
    assert [ids_of(claim(connection)) for _ in range(2)] == [suspects[1:], suspects[:1]]


def test_a_job_that_has_cost_more_leases_than_others_has_its_turn(connection: Connection, suspects: list[int]):
    """Otherwise it would wait for every suspect of everybody, and for the jobs before these."""
    connection.execute("UPDATE loracomp.job SET expired_leases = 3 WHERE id = %s", suspects[:1])
    eves = add_jobs(connection, *["e"] * 5, submitted_by="eve")
    expired = "UPDATE loracomp.job SET expired_leases = 1, run_at = now(), scheduled = true WHERE id = ANY (%s)"
    connection.execute(expired, (eves,))
    bulk(connection, 300, "carol")
    claimed: list[int] = []
    while suspects[0] not in claimed:
        claimed += ids_of(claim(connection))
    assert len(claimed) <= 64 + 16


def test_jobs_of_several_claims_pay_for_no_first_expiry(connection: Connection):
    ids = add_jobs(connection, *"abc", max_attempts=1)
    held: tuple[Job, ...] = ()
    for _ in ids:
        held += claim(connection, 1, held=held)
    assert [each.id for each in held] == ids
    expire_leases(connection)
    connection.execute("SELECT loracomp.rescue_jobs()")
    rows = [job(connection, each) for each in ids]
    assert [(row["status"], row["attempts"], row["expired_leases"]) for row in rows] == [("queued", 0, 1)] * 3


def test_a_claim_waits_for_no_held_job_that_somebody_is_cancelling(connection: Connection, database: str):
    add_jobs(connection, *"ab")
    held = claim(connection, 1)
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT loracomp.cancel_job(%s)", (held[0].id,))
        assert len(claim(connection, 1, held=held)) == 1


def test_a_claim_of_a_worker_that_lost_its_jobs_meanwhile_gets_none_alone(connection: Connection):
    """The worker was killed after it had asked, and others asked first; or it is still at work on what it lost."""
    ids = add_jobs(connection, *"abc", max_attempts=1)
    lost = claim(connection)
    expire_leases(connection)
    connection.execute("SELECT loracomp.rescue_jobs()")
    assert claim(connection, held=lost) == ()
    assert [each.id for each in claim(connection, worker="other")] == ids[:1]


def test_what_joins_a_job_that_is_not_wanted_any_more_pays_for_no_expiry(connection: Connection):
    """The model may not have noticed yet, and be killed by that job."""
    cancelled, innocent = add_jobs(connection, *"ab", max_attempts=1)
    held = claim(connection, 1)
    connection.execute("SELECT loracomp.cancel_job(%s)", (cancelled,))
    assert [each.id for each in claim(connection, held=held)] == [innocent]
    expire_leases(connection)
    connection.execute("SELECT loracomp.rescue_jobs()")
    row = job(connection, innocent)
    assert (row["status"], row["attempts"], row["expired_leases"]) == ("queued", 0, 1)


def test_a_running_job_whose_attempts_somebody_set_to_0_is_still_taken_back(connection: Connection):
    ids = add_jobs(connection, "a", "b")
    (released,) = claim(connection, 1)
    claim(connection, 1)
    connection.execute("UPDATE loracomp.job SET attempts = 0")
    expire_leases(connection)
    assert release_jobs(connection, [released]) == {released.id}
    connection.execute("SELECT loracomp.rescue_jobs()")
    assert statuses(connection) == dict.fromkeys(ids, "queued")


def test_each_expiry_after_the_first_counts_and_the_last_one_fails_the_job(connection: Connection):
    (job_id,) = add_jobs(connection, "a", max_attempts=2)
    claim(connection)
    expire_leases(connection)
    assert [(each.id, each.attempts) for each in claim(connection)] == [(job_id, 1)]
    expire_leases(connection)
    assert claim(connection) == ()  # it waits before it is tried again
    waiting = job(connection, job_id)
    assert (waiting["status"], waiting["attempts"]) == ("queued", 1)
    assert timedelta(0) < waiting["run_at"] - waiting["claimed_at"] < timedelta(seconds=4)
    connection.execute("UPDATE loracomp.job SET run_at = now()")
    claim(connection)
    expire_leases(connection)
    assert claim(connection) == ()
    failed = job(connection, job_id)
    assert (failed["status"], failed["error_code"], failed["attempts"]) == ("failed", "lease_expired", 2)
    assert "worker w" in failed["error"]


def test_a_job_that_hangs_beyond_its_timeout_says_so(connection: Connection):
    together = add_jobs(connection, "a", "b", timeout_s=5, max_attempts=1)
    for errors in (["this job and maybe others"] * 2, ["this job alone", "this job and maybe others"]):
        claim(connection)
        connection.execute(
            "UPDATE loracomp.job SET claimed_at = claimed_at - interval '1 minute',"
            " lease_expires_at = lease_expires_at - interval '1 minute' WHERE status = 'running'"
        )
        connection.execute("SELECT loracomp.rescue_jobs()")
        rows = [job(connection, each) for each in together]
        assert [row["error"] for row in rows] == [
            f"it took longer than its timeout_s of 5 s: worker w stopped or hung while it worked on {each}"
            for each in errors
        ]
        assert {row["error_code"] for row in rows} == {"timed_out"}
    assert [(row["status"], row["attempts"]) for row in rows] == [("failed", 1), ("queued", 0)]


def test_jobs_with_a_running_lease_are_not_rescued(connection: Connection):
    add_jobs(connection, "a")
    claim(connection)
    assert connection.execute("SELECT loracomp.rescue_jobs() AS count").fetchone() == {"count": 0}


# --- record


def test_prediction_trace_and_succeeded_are_written_together(connection: Connection):
    (job_id,) = add_jobs(connection, "a", choices=["no", "yes"])
    claimed = claim(connection, worker="host:1")
    row = ended(
        job_id, choice_index=2, choice_scores=[-3.5, -0.25], example_ids=[7, 5], example_tasks=["rte", "rte"],
        similarities=[0.5, 0.25], tasks=["rte"], probabilities=[1.0], weights=[1.0], timings={"predict": 1.5},
        fallback=None,
    )  # fmt: skip
    assert record_predictions(connection, claimed, [row]) == {job_id}
    found = connection.execute("SELECT * FROM loracomp.prediction").fetchone()
    assert found is not None
    expected = {
        "output": "yes", "choice_index": 2, "choice_scores": [-3.5, -0.25], "example_ids": [7, 5], "tasks": ["rte"],
        "timings": {"predict": 1.5}, "adapter_ids": [], "worker": "host:1", "attempt": 1, "batch_size": 1,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    row = job(connection, job_id)
    assert (row["status"], row["lease_token"], row["finished_at"]) == ("succeeded", None, found["created_at"])


def test_each_job_of_a_batch_gets_what_is_its_own_and_what_all_share(connection: Connection):
    ids = add_jobs(connection, *"abc", choices=["yes", "no"])
    batch = claim(connection)
    answers = [
        {
            "output": "yes",
            "choice_index": 1,
            "choice_scores": [-1.5, -2.5],
            "example_ids": [3],
            "example_tasks": ["rte"],
            "similarities": [0.5],
        },
        {
            "output": None,
            "policy_settings": {"name": "other"},
            "fallback": "no eligible task",
            "searched_task_count": 0,
        },
        {
            "output": "no",
            "choice_index": 2,
            "choice_scores": [-4.5, -3.5],
            "tasks": ['a "quoted", one', "b\\{}"],
            "probabilities": [0.75, 0.25],
            "weights": [0.75, 0.25],
        },
    ]
    rows = [ended(id_, timings={"predict": 1.5, "claim": 0.5}, **own) for id_, own in zip(ids, answers, strict=True)]
    assert record_predictions(connection, batch, rows) == set(ids)
    assert record_predictions(connection, batch, []) == set()
    found = connection.execute("SELECT * FROM loracomp.prediction ORDER BY job_id").fetchall()
    empty = {"choice_index": None, "choice_scores": None, "fallback": None, "searched_task_count": None}
    empty |= {
        name: [] for name in ("example_ids", "example_tasks", "similarities", "tasks", "probabilities", "weights")
    }
    columns = ("output", *empty, "policy_settings")
    default = {"policy_settings": {"name": "default"}}
    assert [{name: row[name] for name in columns} for row in found] == [{**empty, **default, **own} for own in answers]
    assert [row["timings"] for row in found] == [{"predict": 1.5, "claim": 0.5}] * 3


def test_jobs_that_were_tried_alone_keep_their_own_timings(connection: Connection):
    ids = add_jobs(connection, *"ab")
    batch = claim(connection)
    rows = [ended(job_id, timings={"predict": float(job_id), "claim": 0.5}) for job_id in ids]
    assert record_predictions(connection, batch, rows) == set(ids)
    found = connection.execute("SELECT timings FROM loracomp.prediction ORDER BY job_id").fetchall()
    assert [row["timings"] for row in found] == [{"predict": job_id, "claim": 0.5} for job_id in ids]


def test_of_two_attempts_in_one_batch_only_the_current_one_writes(connection: Connection):
    first, second = add_jobs(connection, "a", "b")
    stale = claim(connection, 2)
    connection.execute(
        "SELECT loracomp.cancel_job(i), loracomp.retry_job(i) FROM unnest(%s::bigint[]) AS i", [[first, second]]
    )
    current = claim(connection, 2)
    assert {job.id for job in current} == {first, second}
    for attempts in ((*stale[:1], *current[:1]), (*current[:1], *stale[:1])):
        connection.execute("BEGIN")
        flights = [replace(ended(each.id, output=str(each.lease_token)), job=each) for each in attempts]
        assert recorder.record_predictions(connection, flights) == {first}
        written = value(connection, "SELECT output FROM loracomp.prediction WHERE job_id = %s", [first])
        assert written == str(current[0].lease_token)
        connection.execute("ROLLBACK")
    arguments = {
        "ids": [second, second],
        "tokens": [current[1].lease_token, stale[1].lease_token],
        "codes": ["current", "stale"],
        "messages": ["", ""],
        "retries": [False, False],
    }
    assert [row["id"] for row in connection.execute(QUERIES["fail_jobs"], arguments)] == [second]
    assert job(connection, second)["error_code"] == "current"


def test_only_the_holder_of_the_current_lease_writes(connection: Connection):
    job_id, other = add_jobs(connection, "a", "b")
    stale = claim(connection, 2)
    expire_leases(connection)
    (current,) = claim(connection)
    assert current.id == job_id
    rows = [ended(job_id), ended(other)]
    assert record_predictions(connection, stale, rows) == set()
    assert fail_jobs(connection, stale, [Failure(job_id, "code", "message")]) == set()
    assert release_jobs(connection, stale) == set()
    assert renew_leases(connection, stale, 60) == set()
    assert statuses(connection) == {job_id: "running", other: "queued"}
    assert record_predictions(connection, [current], rows[:1]) == {job_id}
    assert record_predictions(connection, [current], rows[:1]) == set()


def test_of_a_batch_what_holds_is_written(connection: Connection):
    first, cancelled, third = add_jobs(connection, *"abc")
    batch = claim(connection)
    connection.execute("SELECT loracomp.cancel_job(%s)", (cancelled,))
    assert record_predictions(connection, batch, [ended(each.id) for each in batch]) == {first, third}
    assert statuses(connection) == {first: "succeeded", cancelled: "cancelled", third: "succeeded"}


def test_a_prediction_that_cannot_be_stored_leaves_nothing_behind(connection: Connection):
    good, bad = add_jobs(connection, *"ab")
    batch = claim(connection)
    for wrong in ({"batch_size": 0}, {"composition_digest": "a\0b"}, {"example_tasks": ["a\0b"]}):
        with pytest.raises((psycopg.DataError, psycopg.IntegrityError)):
            record_predictions(connection, batch, [ended(good), ended(bad, **wrong)])
    assert statuses(connection) == {good: "running", bad: "running"}
    assert connection.execute("SELECT * FROM loracomp.prediction").fetchall() == []


def test_predictions_without_traces_are_refused(connection: Connection) -> None:
    (job_id,) = add_jobs(connection, "a")
    (claimed,) = claim(connection)
    given = {"row": Jsonb(prediction_row(job_id)), "token": claimed.lease_token}
    with pytest.raises(
        psycopg.errors.InvalidParameterValue, match="predictions and traces must have one element for each job"
    ):
        connection.execute(
            RECORD_ROW.replace("predictions => ", "predictions => array_fill(NULL::loracomp.predicted, '{1}') || "),
            given,
        )
    assert [each["id"] for each in connection.execute(RECORD_ROW, given)] == [job_id]


def test_a_cancellation_that_comes_first_wins(connection: Connection, database: str):
    (job_id,) = add_jobs(connection, "a")
    batch = claim(connection)
    with ThreadPoolExecutor(1) as pool:
        with db.connect(database) as operator, operator.transaction():
            operator.execute("SELECT loracomp.cancel_job(%s)", (job_id,))
            recording = pool.submit(record_predictions, connection, batch, [ended(job_id)])
            wait_for_a_lock(operator)
        assert recording.result(45) == set()
    assert statuses(connection) == {job_id: "cancelled"}


def test_a_cancellation_that_comes_second_says_so(connection: Connection, database: str):
    (job_id,) = add_jobs(connection, "a")
    batch = claim(connection)
    with ThreadPoolExecutor(1) as pool, db.connect(database) as worker:
        with worker.transaction():
            record_predictions(worker, batch, [ended(job_id)])
            cancelling = pool.submit(connection.execute, "SELECT loracomp.cancel_job(%s)", (job_id,))
            wait_for_a_lock(worker)
        with pytest.raises(psycopg.errors.RaiseException, match=f"job {job_id} is succeeded"):
            cancelling.result(45)
    assert statuses(connection) == {job_id: "succeeded"}


# --- fail, release, drain


def test_a_failure_is_tried_again_later_until_its_attempts_are_used_up(connection: Connection):
    (job_id,) = add_jobs(connection, "a", max_attempts=2)
    failure = Failure(job_id, "out_of_memory", "the device is full", retry=True)
    assert fail_jobs(connection, claim(connection), [failure]) == {job_id}
    waiting = job(connection, job_id)
    assert (waiting["status"], waiting["error_code"], waiting["finished_at"]) == ("queued", "out_of_memory", None)
    assert timedelta(0) < waiting["run_at"] - waiting["claimed_at"] < timedelta(seconds=4)
    assert waiting["scheduled"]
    connection.execute("UPDATE loracomp.job SET run_at = now()")
    fail_jobs(connection, claim(connection), [failure])
    assert (job(connection, job_id)["status"], job(connection, job_id)["error"]) == ("failed", "the device is full")


def test_a_failure_that_no_retry_mends_is_final(connection: Connection):
    (job_id,) = add_jobs(connection, "a")
    fail_jobs(connection, claim(connection), [Failure(job_id, "prompt_too_long", "cut it\0\ud800")])
    row = job(connection, job_id)
    assert (row["status"], row["attempts"], row["error"]) == ("failed", 1, "cut it\\0\\ud800")


def test_a_failure_of_any_length_is_recorded_as_far_as_it_fits(connection: Connection):
    """Else the job would wait until its lease ends, and fail again."""
    (job_id,) = add_jobs(connection, "a")
    failure = Failure(job_id, "c" * 1000, "\ud800" + "x" * 1_000_000)
    assert fail_jobs(connection, claim(connection), [failure]) == {job_id}
    row = job(connection, job_id)
    assert (len(row["error_code"]), len(row["error"]), row["error"][:9]) == (100, 10_000, "\\ud800xxx")


def test_retries_wait_longer_each_time_and_not_equally_long(connection: Connection):
    delays = connection.execute(
        "SELECT n, min(d), max(d), count(DISTINCT d) AS distinct"
        " FROM generate_series(1, 12) AS n, generate_series(1, 50),"
        " LATERAL (SELECT extract(epoch FROM loracomp.retry_delay(n + 0 * generate_series))::float8 AS d) AS each"
        " GROUP BY n ORDER BY n"
    ).fetchall()
    for row in delays:
        middle = min(2 ** row["n"], 600)
        assert middle * 0.5 <= row["min"] < row["max"] <= middle * 1.5
        assert row["distinct"] > 25


def test_a_release_gives_attempt_and_place_back(connection: Connection):
    ids = add_jobs(connection, *"ab")
    before = job(connection, ids[0])
    assert release_jobs(connection, claim(connection, 1)) == {ids[0]}
    after = job(connection, ids[0])
    assert [after[key] for key in ("status", "attempts", "place")] == ["queued", 0, before["place"]]
    assert claim(connection, 1)[0].id == ids[0]


def jobs_wait(connection: Connection, base_model: str = BASE) -> bool:
    """Whether a worker that drains has to wait for jobs."""
    retries, others = what_waits(connection, base_model)
    assert others or not retries
    return others


def test_a_queue_with_retries_is_not_empty_and_one_with_jobs_for_later_is(connection: Connection):
    add_jobs(connection, "later", run_at=datetime.now(UTC) + timedelta(hours=1))
    assert not jobs_wait(connection)
    (job_id,) = add_jobs(connection, "now")
    assert jobs_wait(connection)
    claimed = claim(connection)
    assert not jobs_wait(connection)
    fail_jobs(connection, claimed, [Failure(job_id, "code", "message", retry=True)])
    assert jobs_wait(connection)
    assert not jobs_wait(connection, "other")


# --- administration

ENDS = {
    "queued": "UPDATE loracomp.job SET status = 'queued'",
    "running": "UPDATE loracomp.job SET status = 'running', lease_token = 1, claimed_at = now(),"
    " lease_expires_at = now() + interval '1 hour'",
    "succeeded": "UPDATE loracomp.job SET status = 'succeeded', finished_at = now()",
    "failed": "UPDATE loracomp.job SET status = 'failed', finished_at = now(), attempts = 3, error_code = 'oops'",
    "cancelled": "UPDATE loracomp.job SET status = 'cancelled', finished_at = now()",
}


ALLOWED = {
    ("cancel_job", "queued"): "cancelled",
    ("cancel_job", "running"): "cancelled",
    ("retry_job", "failed"): "queued",
    ("retry_job", "cancelled"): "queued",
}


@pytest.mark.parametrize("function", ["cancel_job", "retry_job"])
@pytest.mark.parametrize("status", ENDS)
def test_a_state_changes_only_from_a_state_that_allows_it(connection: Connection, function: str, status: str):
    (job_id,) = add_jobs(connection, "a")
    connection.execute(ENDS[status].encode())
    call = f"SELECT loracomp.{function}(%s)".encode()
    after = ALLOWED.get((function, status))
    if after:
        connection.execute(call, (job_id,))
    else:
        with pytest.raises(psycopg.errors.RaiseException, match=f"job {job_id} is {status}: only a .* job can be"):
            connection.execute(call, (job_id,))
    assert job(connection, job_id)["status"] == (after or status)


@pytest.mark.parametrize("function", ["cancel_job", "retry_job"])
def test_a_job_that_does_not_exist_is_named(connection: Connection, function: str):
    with pytest.raises(psycopg.errors.NoDataFound, match="job 99 does not exist"):
        connection.execute(f"SELECT loracomp.{function}(99)".encode())


def test_retry_gives_all_attempts_again(connection: Connection):
    (job_id,) = add_jobs(connection, "a")
    connection.execute(ENDS["failed"].encode())
    connection.execute("SELECT loracomp.retry_job(%s)", (job_id,))
    row = job(connection, job_id)
    assert [row[key] for key in ("attempts", "error", "error_code", "finished_at")] == [0, None, None, None]
    assert claim(connection)[0].id == job_id


def test_purge_deletes_old_ended_jobs_in_batches_with_predictions_and_events(connection: Connection):
    old = add_jobs(connection, *"abc")
    claimed = claim(connection)
    record_predictions(connection, claimed, [ended(job_id) for job_id in old])
    connection.execute("UPDATE loracomp.job SET finished_at = now() - interval '40 days'")
    queued, running = add_jobs(connection, "d", "e")
    claim(connection, 1)
    purge = "SELECT loracomp.purge_jobs(interval '30 days', 2) AS count"
    assert [connection.execute(purge).fetchone() for _ in range(3)] == [{"count": 2}, {"count": 1}, {"count": 0}]
    assert statuses(connection) == {queued: "running", running: "queued"}
    assert connection.execute("SELECT job_id FROM loracomp.prediction").fetchall() == []
    events = connection.execute("SELECT DISTINCT entity_id FROM loracomp.audit_event WHERE entity = 'job'").fetchall()
    assert {event["entity_id"] for event in events} == {queued, None}  # and one that says how many were purged


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("'-1 day'", "older_than in seconds must be between 0 and .*, and is -86400"),
        ("'-1 day', force => true", "older_than in seconds must be between 0"),
        ("'1 month -40 days', force => true", "older_than in seconds must be between 0"),
        ("'59 minutes'", "older_than must be at least an hour, and is 00:59:00"),
        ("'0'", "older_than must be at least an hour"),
        ("'0', force => NULL", "older_than must be at least an hour"),
        ("'-1000 years'", "older_than in seconds must be between"),
        ("'infinity'", "older_than in seconds must be between"),
        ("NULL, force => true", "older_than in seconds must be between"),
    ],
)
def test_a_slip_in_the_age_purges_nothing(connection: Connection, arguments: str, said: str):
    add_jobs(connection, "a")
    connection.execute("UPDATE loracomp.job SET status = 'cancelled', finished_at = now() - interval '2 hours'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=said):
        connection.execute(f"SELECT loracomp.purge_jobs({arguments})".encode())
    assert len(statuses(connection)) == 1


def test_what_has_just_ended_is_purged_by_force(connection: Connection):
    old, new = add_jobs(connection, *"ab")
    connection.execute("UPDATE loracomp.job SET status = 'cancelled', finished_at = now() - interval '2 minutes'")
    connection.execute("UPDATE loracomp.job SET finished_at = now() - interval '2 days' WHERE id = %s", (old,))
    assert connection.execute("SELECT loracomp.purge_jobs('1 hour') AS count").fetchone() == {"count": 1}
    assert statuses(connection) == {new: "cancelled"}
    purge = "SELECT loracomp.purge_jobs('1 minute', force => true) AS count"
    assert connection.execute(purge).fetchone() == {"count": 1}


def test_a_job_deleted_by_hand_takes_its_answer_along(connection: Connection):
    gone, kept = add_jobs(connection, *"ab")
    record_predictions(connection, claim(connection), [ended(gone), ended(kept)])
    connection.execute("DELETE FROM loracomp.job WHERE id = %s", (gone,))
    assert connection.execute("SELECT job_id FROM loracomp.prediction").fetchall() == [{"job_id": kept}]


def test_the_documented_schedule_purges_until_nothing_is_left(connection: Connection):
    docs = (ROOT / "docs" / "operations.md").read_text()
    statements = set(re.findall(r"DO \$\$.*?END \$\$", docs))
    assert len(statements) == 1, "the block and the schedule say different things"
    bulk(connection, 25)
    connection.execute("UPDATE loracomp.job SET status = 'cancelled', finished_at = now() - interval '91 days'")
    connection.execute(statements.pop().replace("'90 days'", "'90 days', 10").encode())
    assert connection.execute("SELECT count(*) FROM loracomp.job").fetchone() == {"count": 0}


# --- submitters


def connect_as(database: str, connection: Connection, name: str, group: str = "loracomp_submitter") -> Connection:
    """A session whose SET ROLE is a member of a group, as behind a pool."""
    if "LORACOMP_TEST_POOLER" in os.environ:
        pytest.skip("SET ROLE is for a session")
    # Roles are the cluster's: other tests' databases see them too.
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
        connection.execute(f"CREATE ROLE {name} IN ROLE {group}".encode())
    own = db.connect(database)
    own.execute(f"SET ROLE {name}".encode())
    return own


def test_fifty_submissions_with_one_key_are_one_job(connection: Connection, database: str):
    connect_as(database, connection, "job_ann").close()
    barrier = Barrier(50)

    def call(number: int) -> int | str:
        with db.connect(database, vectors=False) as own:
            own.execute("SET ROLE job_ann")
            barrier.wait(30)
            try:
                return submit(own, "other" if number == 25 else "same", idempotency_key="k", choices=["a", "b"])
            except psycopg.errors.UniqueViolation as error:
                return str(error.diag.message_primary)

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(call, range(50)))
    ids = {result for result in results if isinstance(result, int)}
    refusals = [result for result in results if isinstance(result, str)]
    assert len(ids) == 1
    assert len(statuses(connection)) == 1
    assert refusals
    assert all(
        re.fullmatch(r"idempotency_key was used before, by job \d+, with another prompt", text) for text in refusals
    )
    # Whichever came first, the one with another payload is refused, or all but it are.
    assert len(refusals) in (1, 49)


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "b"}, {"choices": ["x", "z"]}, {"tags": '{"n": 2}'}, {"policy": "cat"}, {"kind": "route"},
        {"exclude_tasks": ["rte"]}, {"choices": None, "max_new_tokens": 8}, {"choices": None, "stop": ["."]},
        {"max_attempts": 9, "timeout_s": 9},
    ],
    ids="-".join,
)  # fmt: skip
def test_the_same_key_with_another_payload_is_refused(connection: Connection, changed: dict):
    named = ", ".join(changed)
    connection.execute("INSERT INTO loracomp.task (name) VALUES ('rte')")
    first = {"prompt": "a", "choices": ["x", "y"], "idempotency_key": "k"}
    submit(connection, **first)
    with (
        pytest.raises(RefusedError, match=rf"idempotency key was used before: .*, with another {named}: send"),
        db.translated_errors(),
    ):
        submit(connection, **(first | changed))


def test_when_a_job_may_start_is_not_part_of_its_payload(connection: Connection):
    arguments = {"prompt": "a", "idempotency_key": "k"}
    first = submit(connection, **arguments)
    again = {"run_at": datetime.now(UTC), "max_new_tokens": 64}
    assert submit(connection, **arguments, **again, base_model=BASE) == first
    with pytest.raises(psycopg.errors.UniqueViolation):
        submit(connection, **arguments, max_new_tokens=65)


@pytest.mark.parametrize("drawn", [{"temperature": 0.5}, {"top_p": 0.5}, {"seed": 1}])
def test_how_text_is_drawn_is_part_of_its_payload(connection: Connection, drawn: dict):
    submit(connection, idempotency_key="k")
    with pytest.raises(psycopg.errors.UniqueViolation):
        submit(connection, idempotency_key="k", **drawn)


def test_without_a_key_every_call_is_a_job(connection: Connection):
    assert submit(connection) != submit(connection)


def test_another_submitters_keys_are_invisible(connection: Connection, database: str):
    with (
        connect_as(database, connection, "job_ann") as ann,
        connect_as(database, connection, "job_bob") as bob,
    ):
        first = submit(ann, "a", idempotency_key="k")
        assert submit(bob, "b", idempotency_key="k") != first
        assert job(connection, first)["submitted_by"] == "job_ann"
        # An administrator sees them all, and is still another submitter.
        assert submit(connection, "c", idempotency_key="k") != first
        assert submit(connection, "c", idempotency_key="k") != first


def test_submitters_cancel_their_own_and_administrators_anyones(connection: Connection, database: str):
    with (
        connect_as(database, connection, "job_ann") as ann,
        connect_as(database, connection, "job_bob") as bob,
        connect_as(database, connection, "job_root", "loracomp_admin") as root,
    ):
        first, second = submit(ann), submit(ann)
        with pytest.raises(psycopg.errors.NoDataFound, match="does not exist, or is not yours"):
            bob.execute("SELECT loracomp.cancel_job(%s)", (first,))
        ann.execute("SELECT loracomp.cancel_job(%s, 'a slip')", (first,))
        root.execute("SELECT loracomp.cancel_job(%s)", (second,))
        with pytest.raises(psycopg.errors.NoDataFound, match="does not exist, or is not yours"):
            bob.execute("SELECT loracomp.retry_job(%s)", (first,))
        root.execute("SELECT loracomp.retry_job(%s)", (first,))
    assert statuses(connection) == {first: "queued", second: "cancelled"}


def test_a_restricted_task_does_not_exist_for_a_stranger(connection: Connection, database: str):
    connect_as(database, connection, "job_readers").close()
    connection.execute("INSERT INTO loracomp.task (name, reader_role) VALUES ('secret', 'job_readers')")
    with connect_as(database, connection, "job_ann") as ann, connect_as(database, connection, "job_readers") as reader:
        submit(reader, exclude_tasks=["secret"])
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="do not exist: secret"):
            submit(ann, exclude_tasks=["secret"])


def test_a_job_goes_on_when_a_task_that_it_excludes_goes_away(connection: Connection):
    connection.execute("INSERT INTO loracomp.task (name) VALUES ('gone')")
    (job_id,) = add_jobs(connection, "a", exclude_tasks=["gone"])
    claimed = claim(connection)
    connection.execute("DELETE FROM loracomp.task")
    assert fail_jobs(connection, claimed, [Failure(job_id, "code", "message", retry=True)]) == {job_id}


# --- what a job names goes away


RUNS = (
    "status = 'running', attempts = 1, worker = 'w', claimed_at = now(), lease_token = 7,"
    " lease_expires_at = now() + interval '1 minute'"
)
OVER = RUNS.replace("now() + interval", "now() - interval")
GOING = {
    "the chat template": "UPDATE loracomp.base_model SET has_chat_template = false",
    "the tasks": "DELETE FROM loracomp.task",
    **{
        str(key.name): f"DELETE FROM {key.referred_table.fullname} WHERE name = 'gone'"
        for key in sorted(jobs_table.foreign_key_constraints, key=lambda key: str(key.name))
    },
}
NAMING = {
    "base_model": "gone", "policy": "gone", "task": "gone", "tasks": ["gone"], "exclude_tasks": ["gone too"],
    "submitted_by": "nobody any more", "system_text": "be brief", "chat_template": True,
}  # fmt: skip
"""Columns of a job by which it depends on something."""
STATES = {
    "waits for its time": "run_at = now() + interval '1 hour', scheduled = true, place = NULL",
    "waits in the background": "priority = -1, background = true",
    "waits long in the background": "priority = -1, background = true, run_at = now() - interval '1001 minutes'",
    "waits": "priority = 3",
    "waits alone": "expired_leases = 1",
    "its lease is over": OVER,
    "its lease is over again": f"{OVER}, expired_leases = 1",
    "runs": RUNS,
    "runs in the background": f"{RUNS}, priority = -1",
    "failed": "status = 'failed', finished_at = now(), attempts = 3",
}


def test_every_column_that_names_something_is_tried():
    named = {column.name for key in jobs_table.foreign_key_constraints for column in key.columns}
    assert named <= {*NAMING}


@pytest.mark.parametrize("going", GOING)
def test_what_a_job_names_may_go_away_and_no_call_of_a_worker_raises(connection: Connection, going: str):
    """Nobody could answer the error, and the claims of all workers would fail."""
    connection.execute("DELETE FROM loracomp.policy WHERE name = 'gone'")
    connection.execute("INSERT INTO loracomp.policy (name) VALUES ('gone')")
    connection.execute("INSERT INTO loracomp.task (name) VALUES ('gone'), ('gone too')")
    add_base_model(connection, "gone", default=False)
    connection.execute("UPDATE loracomp.base_model SET has_chat_template = true")
    states = {}
    for state, columns in STATES.items():
        (job_id,) = add_jobs(connection, state, **NAMING)
        connection.execute(f"UPDATE loracomp.job SET {columns} WHERE id = %s".encode(), (job_id,))
        states[job_id] = state
    (bystander,) = add_jobs(connection, "bystander")
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # foreign keys would refuse some
        connection.execute(GOING[going].encode())
        connection.execute("UPDATE loracomp.job SET run_at = now() WHERE scheduled")

    assert [each.id for each in claim(connection)] == [bystander]
    running = [job_id for job_id, state in states.items() if state.startswith("runs")]
    held = [Job(job_id, 7, "predict", "", None, None) for job_id in running]
    assert renew_leases(connection, held, 60) == {*running}
    assert release_jobs(connection, held[:1]) == {running[0]}
    failures = [Failure(running[1], "code", "message", retry=True)]
    assert fail_jobs(connection, held[1:], failures) == {running[1]}
    connection.execute("SELECT loracomp.set_priority(7, ids => %s)", (list(states),))
    for job_id, state in states.items():
        if state == "failed":
            connection.execute("SELECT loracomp.retry_job(%s)", (job_id,))
    connection.execute("UPDATE loracomp.job SET run_at = now() WHERE run_at > now()")
    while claim(connection, base_model="gone"):
        pass
    left = {job_id: status for job_id, status in statuses(connection).items() if status != "running"}
    assert left == {}
    connection.execute("SELECT loracomp.cancel_jobs(ids => %s)", (list(states),))
    connection.execute("DELETE FROM loracomp.job WHERE base_model = 'gone'")


BY_ADMINISTRATORS = {"policy", "base_model"}
"""Tables whose rows administrators alone delete, by hand and seldom: that may read a large table."""
FOREIGN_KEYS = """
SELECT k.conname AS key, k.conrelid::regclass::text AS table, EXISTS (
    SELECT FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = k.conrelid AND a.attnum = ANY (k.conkey)
        AND coalesce(pg_get_expr(i.indpred, i.indrelid) = format('(%I IS NOT NULL)', a.attname), true)
) AS is_indexed
FROM pg_constraint AS k JOIN pg_class AS other ON other.oid = k.confrelid
WHERE k.contype = 'f' AND k.connamespace = 'loracomp'::regnamespace AND other.relname <> ALL (%s)
"""


def test_who_deletes_what_a_foreign_key_names_reads_no_whole_table(connection: Connection):
    """A declaration of somebody's could not be dropped in time where there are ten million jobs."""
    found = connection.execute(FOREIGN_KEYS.replace("%I", "%%I").encode(), [list(BY_ADMINISTRATORS)]).fetchall()
    assert {row["table"] for row in found} >= {"loracomp.job", "loracomp.example_embedding", "loracomp.measurement"}
    slow = {row["key"] for row in found if not row["is_indexed"]}
    assert slow == {"declaration_task_must_exist", "adapter_task_must_exist"}, "of small tables"


def test_dropping_a_task_reads_only_the_jobs_that_name_it(connection: Connection):
    connection.execute("INSERT INTO loracomp.task (name) VALUES ('gone')")
    (named,) = add_jobs(connection, "a", task="gone", expected="b")
    bulk(connection, 2000)
    connection.execute("ANALYZE loracomp.job")
    scans = "SELECT pg_stat_get_xact_tuples_returned('loracomp.job'::regclass) AS rows"
    with connection.transaction():
        before = connection.execute(scans).fetchone()["rows"]
        connection.execute("DELETE FROM loracomp.task WHERE name = 'gone'")
        assert connection.execute(scans).fetchone()["rows"] - before < 100
    assert job(connection, named)["task"] is None


# --- hint


@pytest.mark.session
@pytest.mark.parametrize(("setting", "heard"), [("on", 1), ("off", 0)])
def test_an_insert_gives_one_hint_unless_it_is_turned_off(
    connection: Connection, database: str, setting: str, heard: int
):
    connection.execute("LISTEN loracomp_job")
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    connection.execute(f"ALTER DATABASE {name} SET loracomp.notify = '{setting}'".encode())
    with db.connect(database) as other:
        other.execute("INSERT INTO loracomp.job (prompt) SELECT 'x' FROM generate_series(1, 9)")
    connection.execute(f"ALTER DATABASE {name} RESET loracomp.notify".encode())
    connection.execute("NOTIFY loracomp_job, 'over'")
    hints = takewhile(lambda notice: notice.payload != "over", connection.notifies(timeout=20))
    assert len(list(hints)) == heard


def test_a_lease_token_of_another_job_is_worth_nothing(connection: Connection):
    first, second = add_jobs(connection, *"ab")
    (a,), (b,) = claim(connection, 1), claim(connection, 1)
    forged = replace(a, lease_token=b.lease_token)
    assert record_predictions(connection, [forged], [ended(first)]) == set()
    assert statuses(connection) == {first: "running", second: "running"}
