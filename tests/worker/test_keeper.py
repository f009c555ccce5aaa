"""The keeper: one worker at a time calls the steps that keep the queue in order, and none of them stops the others."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import Event

import psycopg
import pytest

from job_data import BASE, add_jobs, claim, expire_leases, job, keep, record, statuses, wait_for_a_lock
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.worker import keeper, steps
from loracomp.worker.keeper import Keeper
from loracomp.worker.leases import renew_leases
from loracomp.worker.link import Link
from loracomp.worker.steps import Step
from queue_worker import Obedient
from worker_helpers import drain_here, wait_until, working

STEPS = {
    "wake_jobs",
    "rescue_jobs",
    "ask_rows",
    "take_answers",
    "measure_corrections",
    "make_partitions",
}


@contextmanager
def keeping(database: str, worker: str = "one", poll_s: float = 0.05, lease_s: float = 60) -> Iterator[Keeper]:
    link = Link(database, f"loracomp keeper {worker}", Event(), statement_timeout_s=30)
    with Keeper(link, worker=worker, poll_s=poll_s, lease_s=lease_s, changed=lambda: None) as kept:
        yield kept


def elected(connection: Connection) -> str | None:
    """Return the worker that keeps house now."""
    row = connection.execute("SELECT worker FROM loracomp.keeper WHERE keeps_until > now()").fetchone()
    return row and row["worker"]


def noted(connection: Connection) -> dict[str, str | None]:
    """Return each step's error."""
    return {row["step"]: row["error"] for row in connection.execute("SELECT step, error FROM loracomp.keeper_step")}


@pytest.fixture(autouse=True)
def nobody_keeps_house(connection: Connection) -> None:
    connection.execute("DELETE FROM loracomp.keeper")
    connection.execute("DELETE FROM loracomp.keeper_step")


def test_one_worker_keeps_house_and_another_follows_at_once_when_it_stops(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keeper, "ELECTED_S", 60.0)  # so that a busy machine ends no election
    with keeping(database, "one"):
        wait_until(lambda: noted(connection) == dict.fromkeys(STEPS))
        with keeping(database, "two"):
            time.sleep(0.3)
            assert elected(connection) == "one"
        assert elected(connection) == "one"
    assert elected(connection) is None
    with keeping(database, "two"):
        wait_until(lambda: elected(connection) == "two")


def test_another_worker_takes_over_from_one_that_is_gone(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    """The worker that is gone said for how long it was elected, and does not go on."""
    monkeypatch.setattr(keeper, "ELECT_AGAIN_S", 0.1)
    connection.execute("SELECT loracomp.keep_house('gone', '1 minute')")
    with keeping(database, "two"):
        time.sleep(0.3)
        assert elected(connection) == "gone"
        connection.execute("UPDATE loracomp.keeper SET keeps_until = now()")  # the minute is over
        wait_until(lambda: elected(connection) == "two")


def test_nobody_delays_the_rescue_of_jobs_for_longer_than_a_lease_may_be(connection: Connection) -> None:
    """It would last for that long after the login that asked for it has been closed."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="grace must be between 0 and 3600"):
        connection.execute("SELECT loracomp.keep_house('thief', '0 s', '3601 seconds')")


def test_another_worker_takes_over_after_the_servers_clock_went_back(connection: Connection, database: str):
    """Also if the worker that was elected before is gone."""
    connection.execute("SELECT loracomp.keep_house('gone', '5 seconds')")
    connection.execute("UPDATE loracomp.keeper SET keeps_until = now() + interval '2 hours'")
    with keeping(database, "two"):
        wait_until(lambda: elected(connection) == "two")


def test_a_clock_that_jumped_forward_and_back_leaves_no_lease_of_a_dead_worker(connection: Connection, database: str):
    """The jump seemed to be an outage, after which workers get time to renew their leases."""
    connection.execute("SELECT loracomp.keep_house('gone', '5 seconds')")
    connection.execute(
        "UPDATE loracomp.keeper SET keeps_until = now() + interval '2 hours',"
        " unattended_since = now() - interval '10 seconds', grace_until = now() + interval '2 hours'"
    )
    (job_id,) = add_jobs(connection, "a")
    claim(connection, 1, worker="dead")
    expire_leases(connection)
    with keeping(database, "two"):
        wait_until(lambda: job(connection, job_id)["expired_leases"] == 1)


def test_doctor_is_told_of_a_house_that_nobody_keeps_and_of_steps_that_fail(connection: Connection, database: str):
    def told() -> dict[str, str]:
        rows = connection.execute("SELECT * FROM loracomp.check_health() WHERE check_name = 'keeper'")
        return {row["status"]: row["detail"] for row in rows}

    with working(database):
        wait_until(lambda: noted(connection) == dict.fromkeys(STEPS))
    assert [*told()] == ["ok"]
    connection.execute("SELECT loracomp.note_step('ask_rows', 'one', 0, 0.1, 'division by zero')")
    assert "ask_rows fails: division by zero" in told()["warn"]
    connection.execute("SELECT loracomp.note_step('ask_rows', 'one', 0, 0.1, NULL)")
    connection.execute("SELECT loracomp.keep_house('one', '5 seconds')")
    connection.execute("UPDATE loracomp.keeper_step SET ran_at = now() - interval '1 hour' WHERE step = 'wake_jobs'")
    assert "wake_jobs last ran at " in told()["warn"]
    connection.execute("UPDATE loracomp.keeper SET keeps_until = now() - interval '2 minutes'")
    connection.execute(
        "UPDATE loracomp.worker SET status = 'idle', started_at = now() - interval '1 hour', seen_at = now()"
    )
    assert "none of them keeps house" in told()["warn"]


def test_only_steps_are_noted(connection: Connection):
    with pytest.raises(psycopg.errors.CheckViolation, match="step_must_be_one_of_the_keepers"):
        connection.execute("SELECT loracomp.note_step('another', 'one', 0, 0.1, NULL)")


def test_after_an_outage_workers_have_time_to_renew_leases_that_ended_meanwhile(connection: Connection, database: str):
    """Their models went on. A lease that had ended before is not waited for."""
    dead, *held = add_jobs(connection, "dead", "renewed", "not renewed")
    claimed = [claim(connection, 1, worker=name)[0] for name in ("dead", "busy", "gone")]
    connection.execute("SELECT loracomp.keep_house('kept before', '5 seconds')")
    connection.execute("UPDATE loracomp.keeper SET keeps_until = now() - interval '1 minute'")
    connection.execute("UPDATE loracomp.job SET lease_expires_at = now() - interval '1 second'")
    connection.execute("UPDATE loracomp.job SET lease_expires_at = now() - interval '2 minutes' WHERE id = %s", [dead])
    with keeping(database):
        wait_until(lambda: job(connection, dead)["expired_leases"] == 1)
        assert renew_leases(connection, [claimed[1]], 60) == {held[0]}
        assert job(connection, held[1])["status"] == "running"
        connection.execute("UPDATE loracomp.keeper SET grace_until = now()")  # their time is over
        wait_until(lambda: job(connection, held[1])["expired_leases"] == 1)
    assert job(connection, held[0])["status"] == "running"


def test_a_worker_that_takes_over_at_once_waits_for_no_lease(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keeper, "ELECTED_S", 60.0)  # an outage is half as long
    (job_id,) = add_jobs(connection, "a")
    claim(connection, 1, worker="gone")
    connection.execute("SELECT loracomp.keep_house('gone', '5 seconds')")
    connection.execute("UPDATE loracomp.keeper SET keeps_until = now() - interval '1 second'")
    expire_leases(connection)
    with keeping(database):
        wait_until(lambda: job(connection, job_id)["expired_leases"] == 1)


def test_who_keeps_house_is_asked_seldom_by_the_others(connection: Connection, database: str):
    """A hundred workers must not all look at the queue."""
    connection.execute("SELECT loracomp.keep_house('another', '1 minute')")
    with keeping(database, "two"):
        time.sleep(1)
    assert noted(connection) == {}


def test_a_step_that_fails_or_hangs_stops_no_other(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keeper, "STEP_S", 3)  # enough for the other steps on a busy machine
    monkeypatch.setitem(QUERIES, "wake_jobs", "SELECT 1 / 0 AS handled")
    monkeypatch.setitem(QUERIES, "ask_rows", "SELECT pg_sleep(600), 0 AS handled")
    (job_id,) = add_jobs(connection, "a")
    connection.execute("SELECT * FROM loracomp.claim_jobs('gone', %s, 1, '1 minute')", [BASE])
    expire_leases(connection)
    with keeping(database):
        wait_until(lambda: job(connection, job_id)["expired_leases"] == 1)
        wait_until(lambda: set(noted(connection)) == STEPS)
    errors = noted(connection)
    assert errors["wake_jobs"] == "division by zero"
    assert errors["ask_rows"] == "canceling statement due to statement timeout"
    assert {step for step, error in errors.items() if error is None} == STEPS - {"wake_jobs", "ask_rows"}


@pytest.fixture
def locking_at_commit(connection: Connection) -> Iterator[None]:
    """A table whose rows wait for a lock at COMMIT, as a notification does while another session commits one."""
    connection.execute(
        "CREATE TABLE notified (i int);"
        " CREATE FUNCTION lock_late() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END';"
        " CREATE CONSTRAINT TRIGGER late AFTER INSERT ON notified DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION lock_late()"
    )
    yield
    connection.execute("DROP TABLE notified; DROP FUNCTION lock_late")


@pytest.mark.session
def test_the_commit_of_a_step_waits_for_that_of_another_session(
    connection: Connection, database: str, locking_at_commit: None, monkeypatch: pytest.MonkeyPatch
):
    """Whatever is notified at the same time would undo the step."""
    monkeypatch.setattr("loracomp.database.connections.COMMIT_S", 60)
    monkeypatch.setitem(QUERIES, "wake_jobs", "INSERT INTO notified VALUES (1) RETURNING 1 AS handled")

    def step() -> None:
        with db.connect(database) as own:
            assert keeper.call(own, "wake_jobs") == 1

    with db.connect(database) as other, ThreadPoolExecutor(1) as thread:
        with other.transaction():
            other.execute("SELECT pg_advisory_xact_lock(4711)")
            ended = thread.submit(step)
            wait_for_a_lock(connection)
            time.sleep(0.3)
            assert not ended.done()
        ended.result(60)


def test_no_notification_repeats_a_step_that_failed(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(steps, "FAILED_AGAIN_S", 60.0)
    monkeypatch.setitem(QUERIES, "ask_rows", "SELECT 1 / 0 AS handled")
    with keeping(database) as kept:
        wait_until(lambda: "step_failed" in caplog.text)
        for _ in range(50):
            kept.notified.set()
            time.sleep(0.02)
    assert caplog.text.count("step_failed") == 1


def test_a_step_that_failed_is_tried_less_and_less_often(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps, "monotonic", lambda: 0.0)
    step = Step("ask_rows", 1.0)
    pauses = [step.fail() or step.due_at for _ in range(9)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    step.succeed(0, began=0.0)
    assert step.fail() or step.due_at == 1


def test_a_flood_of_notifications_costs_twenty_rounds_a_second(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    calls = "SELECT nextval('loracomp.rescued_jobs') AS number, 0 AS handled"
    monkeypatch.setitem(QUERIES, "ask_rows", calls)

    def rounds() -> int:
        (row,) = connection.execute("SELECT last_value AS n FROM loracomp.rescued_jobs")
        return row["n"]

    before, began = rounds(), time.monotonic()
    with keeping(database, poll_s=60) as kept:
        while time.monotonic() < began + 1 or rounds() < before + 2:
            kept.notified.set()
            time.sleep(0.001)
    assert rounds() - before <= 12 + 20 * (time.monotonic() - began), "ten of them at once"


def test_a_keeper_whose_connection_is_lost_goes_on(connection: Connection, database: str, caplog):
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'loracomp keeper one'"
    (job_id,) = add_jobs(connection, "a")
    with keeping(database):
        wait_until(lambda: elected(connection) == "one")
        connection.execute(cut)
        claim(connection, worker="gone")
        expire_leases(connection)
        wait_until(lambda: job(connection, job_id)["expired_leases"] == 1)
    assert "not_kept" in caplog.text


def test_a_worker_makes_the_partitions_of_the_next_jobs(connection: Connection, database: str):
    newest = "SELECT * FROM loracomp.job_ranges() WHERE first_id > 0"
    for row in connection.execute(newest).fetchall():
        connection.execute(f"DROP TABLE {row['predictions']}, {row['events']}".encode())
    with keeping(database):
        wait_until(lambda: connection.execute(newest).fetchone() is not None)


def test_a_locked_table_keeps_a_worker_from_embedding_and_not_from_claiming(connection: Connection, database: str):
    """The table is locked in this way while the index of embeddings is built: the keeper waits for a moment, and its
    connection is its own."""
    connection.execute("INSERT INTO loracomp.task (name) VALUES ('tea')")
    connection.execute("SELECT loracomp.add_example('tea', 'hot?', 'yes', '{yes,no}')")
    with db.connect(database) as builder, builder.transaction():
        builder.execute("LOCK TABLE loracomp.example_embedding IN ACCESS EXCLUSIVE MODE")
        with working(database):
            add_jobs(connection, "a")
            wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})


def test_a_worker_that_drains_asks_for_all_rows_of_a_table_first(connection: Connection, database: str):
    """Also where the first pages have no row that passes the filter, and a table that is just being changed."""
    connection.execute("CREATE TABLE notes (id integer PRIMARY KEY, body text, kind text)")
    connection.execute(
        "INSERT INTO notes SELECT i, 'note ' || i, CASE WHEN i > 4990 THEN 'ours' ELSE 'theirs' END"
        " FROM generate_series(1, 5000) AS i"
    )
    connection.execute(
        "SELECT loracomp.create_answers("
        "'said', 'notes', '{body}', max_new_tokens => 4, filter => '{\"kind\": \"ours\"}')"
    )
    with ThreadPoolExecutor(1) as pool:
        with db.connect(database) as vacuum, vacuum.transaction():
            vacuum.execute("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE")
            draining = pool.submit(drain_here, database)
            time.sleep(2)
        draining.result(60)
    rows = connection.execute("SELECT status, count(*) FROM said WHERE id > 4990 GROUP BY status").fetchall()
    assert rows == [{"status": "answered", "count": 10}]
    connection.execute("DROP TABLE notes CASCADE; SELECT loracomp.forget_answers(a) FROM loracomp.declaration AS a")


def test_a_worker_that_drains_does_not_wait_for_a_correction_that_somebody_leaves_open(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("loracomp.worker.worker.LOCKED_S", 1)
    connection.execute("CREATE TABLE notes (id integer PRIMARY KEY, body text)")
    connection.execute("INSERT INTO notes SELECT i, 'note ' || i FROM generate_series(1, 3) AS i")
    connection.execute("SELECT loracomp.create_answers('said', 'notes', '{body}', max_new_tokens => 4)")
    try:
        wait_until(lambda: keep(connection) or len(statuses(connection)) == 3)
        with db.connect(database) as owner, owner.transaction():
            owner.execute("UPDATE said SET correct = 'x' WHERE id = 2")
            with ThreadPoolExecutor(1) as pool:
                pool.submit(drain_here, database).result(60)
            assert set(statuses(connection).values()) == {"succeeded"}
            assert connection.execute("SELECT status FROM said WHERE id = 2").fetchone() == {"status": "waiting"}
        drain_here(database)
        assert connection.execute("SELECT answer FROM said WHERE id = 2").fetchone() == {"answer": "NOTE 2"}
    finally:
        connection.execute("DROP TABLE notes CASCADE; SELECT loracomp.forget_answers(a) FROM loracomp.declaration AS a")


def test_a_worker_that_drains_waits_for_rows_that_another_worker_answers(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    """Whoever waited for the worker to end reads the answers next."""
    monkeypatch.setattr("loracomp.worker.worker.LOCKED_S", 0.1)
    connection.execute("CREATE TABLE notes (id integer PRIMARY KEY, body text)")
    connection.execute("INSERT INTO notes VALUES (1, 'note')")
    connection.execute("SELECT loracomp.create_answers('said', 'notes', '{body}', max_new_tokens => 4)")
    try:
        wait_until(lambda: keep(connection) or statuses(connection))
        (claimed,) = claim(connection)
        with ThreadPoolExecutor(1) as pool:
            draining = pool.submit(drain_here, database)
            wait_until(lambda: elected(connection))
            time.sleep(1)
            assert not draining.done()
            # From now on the row's answer only waits for the keeper, whose next call may be later.
            monkeypatch.setattr("loracomp.worker.worker.LOCKED_S", 600)
            record(
                connection,
                {claimed.id: claimed.lease_token},
                [{"job_id": claimed.id, "output": "x", "adapter_sha256": []}],
            )
            draining.result(90)
        assert connection.execute("SELECT answer FROM said").fetchone() == {"answer": "x"}
    finally:
        connection.execute("DROP TABLE notes CASCADE; SELECT loracomp.forget_answers(a) FROM loracomp.declaration AS a")


class Slow(Obedient):
    """An engine that waits before it embeds, as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = Event()

    def embed(self, connection: Connection) -> int:
        self.turn.wait(120)
        return 0


def test_jobs_are_woken_and_rescued_while_examples_wait_to_be_embedded(connection: Connection, database: str):
    engine = Slow()
    with working(database, engine):
        wait_until(lambda: elected(connection))
        (job_id,) = add_jobs(connection, "a", run_at=datetime.now(UTC) + timedelta(seconds=0.3))
        wait_until(lambda: job(connection, job_id)["status"] == "succeeded")
        engine.turn.set()
