"""Faults of jobs, of the database and of other sessions cost the culprit alone, and nothing is lost or doubled."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from job_data import BASE, add_jobs, claim, job, statuses
from job_fixtures import cleared_connection, database_of_a_module, gate_of_a_test  # noqa: F401
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.engine.inflight import InFlight
from loracomp.errors import JobError
from loracomp.records import Job
from loracomp.worker.endpoint import DatabaseSample
from loracomp.worker.heartbeat import Heartbeat
from loracomp.worker.leases import Leases, claim_jobs
from loracomp.worker.link import Link
from loracomp.worker.presence import Presence
from loracomp.worker.worker import Worker
from queue_worker import Obedient
from worker_helpers import (
    Crowded,
    claims,
    drain_here,
    embeddings_locked,
    make_due,
    predictions,
    wait_for_a_heartbeat,
    wait_for_a_report,
    wait_until,
    working,
)


@contextmanager
def beating(
    database: str,
    leases: Leases,
    notified: Mapping[str, Event] | None = None,
    sample: DatabaseSample | None = None,
    lease_s: float = 1,
) -> Iterator[None]:
    """Run the heartbeat of an idle worker, whose reports may take a sixth of a lease, and other statements a lease."""
    who = {"name": "w", "base_model": BASE, "device": "cpu/float32"}
    presence = Presence(who, lambda: {"status": "idle", "looked_s": None}, lease_s, sample)
    link = Link(database, "loracomp heartbeat", Event(), statement_timeout_s=lease_s, vectors=False)
    with Heartbeat(link, leases, presence, lease_s=lease_s, notified=notified or {}):
        yield


@pytest.mark.session
def test_a_fault_costs_the_culprit_alone(connection: Connection, database: str):
    prompts = [
        "a",
        "raise",
        "b",
        "refuse",
        "c",
        "fail",
        "d",
        "nameless x",
        "e",
        "f",
        "unprepared",
    ]
    ids = dict(zip(prompts, add_jobs(connection, *prompts, max_attempts=1), strict=True))
    drain_here(database)
    rows = {prompt: job(connection, job_id) for prompt, job_id in ids.items()}
    assert {prompt: row["error_code"] for prompt, row in rows.items()} == {
        **dict.fromkeys("abcdef"),
        **dict.fromkeys(["raise", "nameless x", "unprepared"], "internal_error"),
        **dict.fromkeys(["refuse", "fail"], "prompt_too_long"),
    }
    assert rows["raise"]["error"] == "ValueError: a fault"
    assert {row["attempts"] for row in rows.values()} == {1}
    assert {row["status"] for prompt, row in rows.items() if prompt in "abcdef"} == {"succeeded"}


@contextmanager
def refusing(connection: Connection, table: str, condition: str, error: str) -> Iterator[None]:
    """The table refuses rows for which this holds, with an error that may also mean that the database is away."""
    connection.execute(
        f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN"
        f" RAISE EXCEPTION 'it does not go' USING ERRCODE = '{error}'; END IF; RETURN new; END $$".encode()
    )
    connection.execute(
        f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON loracomp.{table} FOR EACH ROW"
        " EXECUTE FUNCTION refuse()".encode()
    )
    try:
        yield
    finally:
        connection.execute("DROP FUNCTION refuse CASCADE")


def test_what_the_database_never_takes_costs_that_job_alone(connection: Connection, database: str):
    """The recorder must not repeat it for ever."""
    first, bad, last = add_jobs(connection, "a", "bad", "c", max_attempts=1)
    with refusing(connection, "prediction", "new.output = 'BAD'", "out_of_memory"):
        drain_here(database)
    assert statuses(connection) == {first: "succeeded", bad: "failed", last: "succeeded"}
    assert job(connection, bad)["error"] == "OutOfMemory: it does not go"


def test_a_failure_that_the_database_never_takes_is_left_to_its_lease(connection: Connection, database: str):
    bad, good = add_jobs(connection, "fail", "a", max_attempts=1)
    with refusing(connection, "job", f"new.id = {bad} AND new.status = 'failed'", "out_of_memory"):
        with working(database):
            wait_until(lambda: statuses(connection)[good] == "succeeded")
            more = add_jobs(connection, "b")
            wait_until(lambda: statuses(connection)[more[0]] == "succeeded")
        assert statuses(connection)[bad] == "running"


def test_a_full_disk_is_waited_for_and_costs_no_job_an_attempt(connection: Connection, database: str):
    ids = add_jobs(connection, *"abc", max_attempts=1)
    with working(database, batch_size=3):
        with refusing(connection, "prediction", "true", "disk_full"):
            wait_until(lambda: set(statuses(connection).values()) == {"running"})
            time.sleep(1.5)
            assert set(statuses(connection).values()) == {"running"}
        wait_until(lambda: statuses(connection) == dict.fromkeys(ids, "succeeded"))


@pytest.mark.session
@pytest.mark.parametrize("table", ["job", "prediction"])
def test_a_locked_table_costs_no_job_an_attempt_though_the_role_has_a_statement_timeout(
    connection: Connection, database: str, gate: Path, table: str
):
    ids = add_jobs(connection, f"until {gate}", *"abc", max_attempts=1)
    hurried = make_conninfo(database, options="-c statement_timeout=200")
    with working(hurried, batch_size=4):
        wait_until(lambda: set(statuses(connection).values()) == {"running"})
        with db.connect(database) as other, other.transaction():
            other.execute(f"LOCK TABLE loracomp.{table} IN ACCESS EXCLUSIVE MODE".encode())
            gate.touch()
            time.sleep(3)
        wait_until(lambda: statuses(connection) == dict.fromkeys(ids, "succeeded"))
    assert {(row["attempts"], row["expired_leases"]) for row in map(partial(job, connection), ids)} == {(1, 0)}


def test_answers_that_take_too_long_to_write_together_are_written_one_by_one(connection: Connection, database: str):
    ids = add_jobs(connection, *"abc", max_attempts=1)
    connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF (SELECT count(*) FROM n) > 1 THEN"
        " RAISE EXCEPTION 'it takes too long' USING ERRCODE = 'query_canceled'; END IF; RETURN NULL; END $$"
    )
    connection.execute(
        "CREATE TRIGGER refuse AFTER INSERT ON loracomp.prediction REFERENCING NEW TABLE AS n"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
    )
    try:
        drain_here(database)
    finally:
        connection.execute("DROP FUNCTION refuse CASCADE")
    assert statuses(connection) == dict.fromkeys(ids, "succeeded")


def test_a_claim_whose_reply_is_lost_makes_no_suspects(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    """Nobody knows of the leases: their jobs would wait for a minute, and then run one by one."""
    lost = []

    def claim_and_lose(at: Connection, **arguments: Any) -> tuple[Job, ...]:
        jobs = claim_jobs(at, **arguments)
        if jobs and not lost:
            lost.extend(jobs)
            raise psycopg.OperationalError("the connection was cut after the commit")
        return jobs

    monkeypatch.setattr("loracomp.worker.claimer.claim_jobs", claim_and_lose)
    ids = add_jobs(connection, *"abc")
    with working(database, batch_size=3):
        wait_until(lambda: statuses(connection) == dict.fromkeys(ids, "succeeded"))
    assert [each.id for each in lost] == ids
    rows = [job(connection, each) for each in ids]
    assert {(row["attempts"], row["expired_leases"]) for row in rows} == {(1, 0)}


def test_a_claim_whose_reply_is_lost_while_the_worker_stops_is_released(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    stopping = Event()

    def claim_and_lose(at: Connection, **arguments: Any) -> tuple[Job, ...]:
        if claim_jobs(at, **arguments):
            worker.stop()
            stopping.set()
            raise psycopg.OperationalError("the connection was cut after the commit")
        return ()

    monkeypatch.setattr("loracomp.worker.claimer.claim_jobs", claim_and_lose)
    with working(database, batch_size=3) as worker:
        ids = add_jobs(connection, *"abc")
        assert stopping.wait(45)
    assert statuses(connection) == dict.fromkeys(ids, "queued")
    assert {job(connection, each)["attempts"] for each in ids} == {0}


def test_what_postgres_cannot_store_of_an_answer_is_spelled_out(connection: Connection, database: str):
    (job_id,) = add_jobs(connection, "nul")
    drain_here(database)
    assert job(connection, job_id)["status"] == "succeeded"
    assert predictions(connection)[job_id]["output"] == "a\\0b \\ud800"


def test_no_log_and_no_error_quotes_an_answer(connection: Connection, database: str, caplog: pytest.LogCaptureFixture):
    """The database's errors quote answers: rows in their detail, and parameters in their context."""
    ids = add_jobs(connection, "nameless SECRET", "sentence SECRET", "a", max_attempts=1)
    drain_here(database)
    errors = [job(connection, each)["error"] for each in ids]
    assert errors[0].startswith('NotNullViolation: null value in column "batch_size"')
    assert errors[1:] == ["RefusedError: a sentence", None]
    said = caplog.text
    assert said.count("batch_raised") == 2 and said.count("Traceback") == 3  # the sentence's with its cause
    assert "SECRET" not in said + str(errors)


class Cancelling(Obedient):
    """An engine that cancels each job before the job fails."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def end(self, flight: InFlight) -> None:
        self._connection.execute("SELECT loracomp.cancel_job(%s)", (flight.job.id,))
        raise JobError("the prompt is too long", code="prompt_too_long")


def test_a_failure_that_is_not_written_is_not_logged_as_one(
    connection: Connection, database: str, caplog: pytest.LogCaptureFixture
):
    (job_id,) = add_jobs(connection, "a")
    with working(database, Cancelling(connection)):
        wait_until(lambda: statuses(connection) == {job_id: "cancelled"})
    assert "failed" not in caplog.text
    add_jobs(connection, "fail")
    drain_here(database)
    assert caplog.text.count("failed") == 1


def test_what_waits_for_the_database_is_given_back(connection: Connection, database: str):
    """Before its lease is over, so that no job is claimed alone from then on, or pays with an attempt."""
    waiting = add_jobs(connection, "look-up", "look-up", timeout_s=4, max_attempts=1)
    with working(database, statement_timeout_s=1):
        with embeddings_locked(database):
            wait_until(lambda: claims(connection)[waiting[0]] >= 2)
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    rows = [job(connection, each) for each in waiting]
    assert {(row["attempts"], row["expired_leases"], row["error_code"]) for row in rows} == {(1, 0, None)}


def test_a_short_timeout_sends_nobody_elses_jobs_back(connection: Connection, database: str, gate: Path):
    """The other jobs are prepared, and wait for the model."""
    add_jobs(connection, f"until {gate}")
    with working(database):
        wait_until(lambda: "running" in statuses(connection).values())
        (other,) = add_jobs(connection, "b", run_at=datetime.now(UTC) + timedelta(hours=1))
        (short,) = add_jobs(connection, "a", timeout_s=1, run_at=datetime.now(UTC) + timedelta(hours=1))
        make_due(connection)
        wait_until(lambda: claims(connection)[short] == 1 and statuses(connection)[short] == "queued")
        assert statuses(connection)[other] == "running"
        gate.touch()
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    assert claims(connection)[other] == 1


def test_a_job_whose_time_is_over_before_the_model_has_begun_it_pays_no_attempt(connection: Connection, database: str):
    (job_id,) = add_jobs(connection, "a", timeout_s=1, max_attempts=1)
    engine = Crowded()
    with working(database, engine):
        wait_until(lambda: claims(connection)[job_id] >= 3)
        engine.begins = True
        wait_until(lambda: job(connection, job_id)["status"] == "failed")
    row = job(connection, job_id)
    assert (row["error_code"], row["attempts"], row["expired_leases"]) == ("timed_out", 1, 0)


class SlowToPrepare(Crowded):
    """Takes longer than the job's time before the model can begin."""

    def end(self, flight: InFlight) -> None:
        flight.timings["route"] = 1000.0
        super().end(flight)


def test_a_job_whose_preparation_takes_all_its_time_fails_in_the_end(connection: Connection, database: str):
    (job_id,) = add_jobs(connection, "a", timeout_s=1, max_attempts=2)
    with working(database, SlowToPrepare()):
        wait_until(lambda: job(connection, job_id)["status"] == "failed")
    assert (job(connection, job_id)["error_code"], job(connection, job_id)["attempts"]) == ("timed_out", 2)


@pytest.mark.session
def test_notifications_without_a_job_make_no_worker_claim_without_a_pause(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    """Any login can send them in a loop."""
    claimed = []

    def claim_and_count(at: Connection, **arguments: Any) -> tuple[Job, ...]:
        claimed.append(arguments)
        return claim_jobs(at, **arguments)

    monkeypatch.setattr("loracomp.worker.claimer.claim_jobs", claim_and_count)
    began = time.monotonic()
    with working(database, poll_s=60, listen=True):
        while time.monotonic() < began + 2 or len(claimed) <= 10:
            connection.execute("NOTIFY loracomp_job")
    assert len(claimed) <= 20 + 20 * (time.monotonic() - began), "ten of them at once"


def test_a_job_that_waits_for_the_database_is_given_back_when_the_worker_is_to_stop(
    connection: Connection, database: str
):
    (waiting,) = add_jobs(connection, "look-up")
    with embeddings_locked(database):
        with working(database, statement_timeout_s=1):
            wait_until(lambda: job(connection, waiting)["status"] == "running")
        row = job(connection, waiting)
        assert (row["status"], row["attempts"], row["expired_leases"]) == ("queued", 0, 0)


def test_a_lease_that_a_record_ends_is_not_taken_for_lost(
    connection: Connection, database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    let_go = Leases.let_go

    def slowly(leases: Leases, jobs: Iterable[Job]) -> None:
        """A heartbeat falls between the write and its answer: one whole between the ends of two."""
        for _ in range(2):
            wait_for_a_report(connection)
        let_go(leases, jobs)

    ids = add_jobs(connection, "a", "b")
    worker = Worker(database, Obedient(), base_model=BASE, settings=Settings(poll_s=0.05, lease_s=4), drain=True)
    monkeypatch.setattr(Leases, "let_go", slowly)
    with caplog.at_level("WARNING"):
        worker.run()
    assert statuses(connection) == dict.fromkeys(ids, "succeeded")
    assert "leases_lost" not in caplog.text


def test_a_worker_that_claims_a_job_again_drops_the_older_attempt(
    connection: Connection, database: str, gate: Path, caplog: pytest.LogCaptureFixture
):
    """Its submitter has cancelled and retried it. The lease is too long for a heartbeat to tell."""
    (job_id,) = add_jobs(connection, f"until {gate}")
    with caplog.at_level("WARNING"), working(database, lease_s=600, held_batches=2) as worker:
        wait_until(lambda: len(worker._leases.held) == 1)
        (older,) = worker._leases.held
        connection.execute("SELECT loracomp.cancel_job(%s)", (job_id,))
        connection.execute("SELECT loracomp.retry_job(%s)", (job_id,))
        wait_until(lambda: len(worker._leases.held) == 2)
        (newer,) = worker._leases.held - {older}
        wait_until(lambda: not worker._leases.still_leased(older))
        assert worker._leases.still_leased(newer)
        gate.touch()
        wait_until(lambda: not worker._leases.held)
    assert job(connection, job_id)["status"] == "succeeded"
    assert "not_recorded" not in caplog.text


def test_a_worker_forgets_what_it_lost_before_the_model_began_it(connection: Connection, database: str, gate: Path):
    """A worker that holds jobs claims no suspect and no partial batch, so it must not count lost jobs as held."""
    ids = add_jobs(connection, f"until {gate}", "a", "b", "c")
    with working(database, lease_s=6) as worker:
        wait_until(lambda: set(statuses(connection).values()) == {"running"})
        for waiting in ids[2:]:
            connection.execute("SELECT loracomp.cancel_job(%s)", (waiting,))
        wait_for_a_heartbeat(connection, ids[0])
        gate.touch()
        wait_until(lambda: job(connection, ids[0])["status"] == "succeeded")
        (after_it,) = add_jobs(connection, "carry on", expired_leases=1)
        wait_until(lambda: job(connection, after_it)["status"] == "succeeded")
        wait_until(lambda: not worker._leases.held)
    assert [statuses(connection)[each] for each in ids[2:]] == ["cancelled"] * 2


def test_heartbeats_go_on_after_any_error(connection: Connection, database: str, caplog: pytest.LogCaptureFixture):
    (job_id,) = add_jobs(connection, "a")
    rename = "ALTER FUNCTION loracomp.{} RENAME TO {}"
    leases = Leases(lease_s=1)
    with beating(database, leases):
        connection.execute(rename.format("renew_leases", "put_aside").encode())
        try:
            leases.hold(claim(connection, lease_s=60))
            wait_until(lambda: "heartbeat_missed" in caplog.text)
        finally:
            connection.execute(rename.format("put_aside", "renew_leases").encode())
        claimed = job(connection, job_id)
        wait_until(lambda: job(connection, job_id)["lease_expires_at"] != claimed["lease_expires_at"])


def test_heartbeats_go_on_after_a_fault_of_our_own(
    connection: Connection, database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    (job_id,) = add_jobs(connection, "a")
    leases = Leases(lease_s=1)
    renew, faults = leases.renew, iter([ValueError("a fault")])

    def renew_but_once(at: Connection) -> None:
        for fault in faults:
            raise fault
        renew(at)

    monkeypatch.setattr(leases, "renew", renew_but_once)
    with beating(database, leases):
        leases.hold(claim(connection, lease_s=60))
        claimed = job(connection, job_id)
        wait_until(lambda: job(connection, job_id)["lease_expires_at"] != claimed["lease_expires_at"])
    assert "a fault" in caplog.text


@pytest.mark.parametrize("query", ["listen", "report_worker", "database_metrics"])
def test_what_gets_no_answer_keeps_no_lease_from_being_renewed(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch, query: str
):
    """One connection does it all: none of its statements may hold up the leases."""
    monkeypatch.setitem(QUERIES, query, "SELECT pg_sleep(600)")
    (job_id,) = add_jobs(connection, "a")
    leases = Leases(lease_s=1)
    with beating(database, leases, notified={"loracomp_job": Event()}, sample=DatabaseSample()):
        jobs = claim(connection, lease_s=1)
        leases.hold(jobs)
        claimed = job(connection, job_id)["claimed_at"]
        wait_until(lambda: job(connection, job_id)["lease_expires_at"] > claimed + timedelta(seconds=3))
        assert all(leases.still_leased(each) for each in jobs)
