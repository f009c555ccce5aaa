"""A statement that the database does not answer in time: the worker goes on, and the server has forgotten it."""

import time
from collections.abc import Iterator
from threading import Event

import psycopg
import pytest

from job_data import BASE, add_jobs, claim, end, job, statuses
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database import connections
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.engine.inflight import InFlight
from loracomp.records import Failure
from loracomp.worker.leases import claim_jobs, release_jobs, renew_leases
from loracomp.worker.link import Link
from loracomp.worker.recorder import fail_jobs, record
from worker_helpers import changed, wait_until, working

NAME = "loracomp impatient"
SESSIONS = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"


@pytest.fixture
def link(database: str) -> Iterator[Link]:
    opened = Link(database, NAME, Event(), statement_timeout_s=1)
    yield opened
    opened.close()


CALLS = {
    "claim": lambda at, held: claim_jobs(at, worker="w", base_model=BASE, batch_size=8, lease_s=60),
    "renew": lambda at, held: renew_leases(at, held, 600),
    "release": release_jobs,
    "fail": lambda at, held: fail_jobs(at, held, [Failure(each.id, "code", "message", True) for each in held]),
    "record": lambda at, held: record(at, [end(InFlight(each)) for each in held]),
}


@pytest.mark.session
@pytest.mark.parametrize("call", CALLS)
def test_what_gets_no_answer_has_no_effect_later(connection: Connection, database: str, link: Link, call: str):
    """A session that is left behind would hold its locks, and commit what nobody knows of."""
    waiting = add_jobs(connection, "a", "b")[1:]
    held = claim(connection, 1)
    lease = job(connection, held[0].id)["lease_expires_at"]
    connection.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN new; END'"
    )
    connection.execute("CREATE TRIGGER zz_dawdle BEFORE UPDATE ON loracomp.job FOR EACH ROW EXECUTE FUNCTION dawdle()")
    try:
        with pytest.raises(psycopg.OperationalError, match="no answer within 1 s"):
            link.call(lambda at: CALLS[call](at, held), give_up=lambda _: True)
        wait_until(lambda: connection.execute(SESSIONS, (NAME,)).fetchone() is None)
    finally:
        connection.execute("DROP FUNCTION dawdle CASCADE")
    assert statuses(connection) == {held[0].id: "running", waiting[0]: "queued"}
    assert job(connection, held[0].id)["lease_expires_at"] == lease
    link.close()
    with db.connect(database) as own:
        assert CALLS[call](own, held)


@pytest.mark.session
def test_tries_behind_a_lock_leave_no_sessions_that_wait(connection: Connection, database: str, link: Link):
    add_jobs(connection, "a")
    tries = iter([False, False, True])
    with db.connect(database) as other, other.transaction():
        other.execute("LOCK TABLE loracomp.job IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(psycopg.OperationalError, match="no answer"):
            link.call(lambda at: CALLS["claim"](at, ()), give_up=lambda _: next(tries))
        wait_until(lambda: connection.execute(SESSIONS, (NAME,)).fetchone() is None)
    assert set(statuses(connection).values()) == {"queued"}


def test_an_answer_that_comes_in_spite_of_the_cancellation_counts(
    connection: Connection, link: Link, monkeypatch: pytest.MonkeyPatch
):
    """A commit that is under way is an example: the statement has had its effect."""
    link.open()
    began: list[float] = []

    def clock_that_stops() -> float:
        """It stops after the statement was cancelled and before its time is over."""
        began.append(time.monotonic())
        return min(began[-1], began[0] + 0.95)

    monkeypatch.setattr(connections, "monotonic", clock_that_stops)
    stubborn = "BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN END"
    link.call(lambda at: at.execute(f"DO $$ {stubborn} $$".encode()), give_up=lambda _: True)
    assert link.is_alive()


def test_a_step_of_the_keeper_that_hangs_keeps_no_worker_from_claiming(connection: Connection, database: str):
    claim(connection)
    with changed(connection, "rescue_jobs", "PERFORM pg_sleep(600); RETURN 0;"), working(database):
        ids = add_jobs(connection, *"abcdef")
        wait_until(lambda: statuses(connection) == dict.fromkeys(ids, "succeeded"))
