"""A worker on a real queue: while its model answers some jobs, others are claimed and recorded, each exactly once."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from job_data import BASE, add_jobs, expire_leases, job, statuses
from job_fixtures import cleared_connection, database_of_a_module, gate_of_a_test  # noqa: F401
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection, rows_of
from loracomp.engine.inflight import InFlight
from loracomp.errors import JobError, SchemaMismatchError
from loracomp.records import Job
from loracomp.worker.claimer import Claimer
from loracomp.worker.worker import Worker
from queue_worker import Obedient
from worker_helpers import (
    changed,
    claims,
    drain_here,
    predictions,
    reported,
    running,
    wait_for_a_heartbeat,
    wait_until,
    working,
)


def is_connected(connection: Connection, application: str) -> bool:
    statement = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s AND datname = current_database()"
    return connection.execute(statement, (application,)).fetchone() is not None


def has_looked_since(connection: Connection, moment: datetime) -> bool:
    """Return whether the last statement on the worker's connection for claims is newer, and has ended."""
    statement = (
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'loracomp worker%%'"
        " AND datname = current_database() AND state = 'idle' AND query_start > %s"
    )
    return connection.execute(statement, (moment,)).fetchone() is not None


def wait_for_a_look(worker: Worker) -> None:
    """Wait until the worker has asked for jobs once more."""
    before = worker._claimer.looked_at
    wait_until(lambda: worker._claimer.looked_at != before)


# --- the loop


def test_two_workers_share_500_jobs_and_do_none_twice(connection: Connection, database: str):
    with running(database, WORKER="one") as one, running(database, WORKER="two") as two:
        for name in ("one", "two"):
            wait_until(lambda name=name: is_connected(connection, f"loracomp worker {name}"))
        ids = add_jobs(connection, *(f"job {number}" for number in range(500)))
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
        one.send_signal(signal.SIGTERM)
        two.send_signal(signal.SIGTERM)
        assert [one.wait(45), two.wait(45)] == [0, 0]
    assert claims(connection) == dict.fromkeys(ids, 1)
    found = predictions(connection)
    assert [found[job_id]["output"] for job_id in ids] == [f"JOB {number}" for number in range(500)]
    assert {row["worker"] for row in found.values()} == {"one", "two"}


def test_a_draining_worker_waits_for_retries_and_not_for_jobs_for_later(connection: Connection, database: str):
    (job_id,) = add_jobs(connection, "raise", max_attempts=2)
    (later,) = add_jobs(connection, "a", run_at=datetime.now(UTC) + timedelta(hours=1))
    drain_here(database)
    assert statuses(connection) == {job_id: "failed", later: "queued"}
    assert claims(connection) == {job_id: 2}


def test_a_job_that_somebody_keeps_locked_keeps_no_draining_worker(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("loracomp.worker.worker.LOCKED_S", 1)
    locked, answered = add_jobs(connection, "a", "b")
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT FROM loracomp.job WHERE id = %s FOR UPDATE", (locked,))
        drain_here(database)
    assert statuses(connection) == {locked: "queued", answered: "succeeded"}


def test_the_workers_role_is_enough(connection: Connection, database: str):
    if connection.execute("SELECT oid FROM pg_roles WHERE rolname = 'job_worker'").fetchone() is None:
        connection.execute("CREATE ROLE job_worker LOGIN IN ROLE loracomp_worker")
    done, failed = add_jobs(connection, "a", "fail")
    drain_here(make_conninfo(database, user="job_worker"))
    assert statuses(connection) == {done: "succeeded", failed: "failed"}


def test_a_worker_whose_encoder_is_no_longer_the_databases_ends_and_costs_no_job(connection: Connection, database: str):
    jobs = add_jobs(connection, "a", "route-by ffff")
    with pytest.raises(SchemaMismatchError, match="start the worker again"):
        drain_here(database)
    assert set(statuses(connection).values()) == {"queued"}
    assert [job(connection, job_id)["attempts"] for job_id in jobs] == [0, 0]


@contextmanager
def refusing_to_route(connection: Connection, error: str) -> Iterator[None]:
    with changed(connection, "route_jobs", f"RAISE EXCEPTION 'it does not go' USING ERRCODE = '{error}';"):
        yield


def test_a_worker_that_lacks_a_right_ends_and_costs_no_job(connection: Connection, database: str):
    """Each job would fail: routing as well as all else."""
    jobs = add_jobs(connection, "a", "route-by ffff", max_attempts=1)
    with refusing_to_route(connection, "insufficient_privilege"), pytest.raises(psycopg.ProgrammingError):
        drain_here(database)
    assert set(statuses(connection).values()) == {"queued"}
    assert [job(connection, job_id)["attempts"] for job_id in jobs] == [0, 0]


def test_a_worker_that_may_not_record_ends_at_once(
    connection: Connection, database: str, caplog: pytest.LogCaptureFixture
):
    (job_id,) = add_jobs(connection, "a", max_attempts=1)
    worker = Worker(database, Obedient(), base_model=BASE, settings=Settings(poll_s=0.05))
    body = "RAISE EXCEPTION 'you may not' USING ERRCODE = 'insufficient_privilege';"
    with changed(connection, "record_predictions", body), ThreadPoolExecutor(1) as thread:
        ended = thread.submit(worker.run)
        try:
            with pytest.raises(psycopg.ProgrammingError):
                ended.result(45)
        finally:
            worker.stop()
    assert (statuses(connection), job(connection, job_id)["attempts"]) == ({job_id: "queued"}, 0)
    assert "not_recorded" in caplog.text


@pytest.mark.parametrize("error", ["lock_not_available", "query_canceled"])
def test_jobs_wait_while_a_locked_table_keeps_them_from_being_routed(connection: Connection, database: str, error: str):
    """The worker's role has a lock_timeout or a statement_timeout, and an index is being built."""
    (waiting,) = add_jobs(connection, "route-by ffff", timeout_s=2, max_attempts=1)
    with refusing_to_route(connection, error), working(database):
        wait_until(lambda: claims(connection)[waiting] >= 3)
        connection.execute("SELECT loracomp.cancel_job(%s)", (waiting,))
    row = job(connection, waiting)
    assert (row["expired_leases"], row["error_code"]) == (0, "cancelled")


def test_old_work_and_urgent_jobs_are_claimed_one_batch_after_the_other(connection: Connection, database: str):
    """A claim that reads on overlooks jobs in front, and must not leave them to the next poll."""
    add_jobs(connection, *["sleep 0"] * 40)
    drain_here(database)
    for priority in (-1, -3, 3, 9):
        add_jobs(connection, *["sleep 0"] * 40, priority=priority)
    with working(database, poll_s=60):
        wait_until(lambda: not rows_of(connection, "SELECT FROM loracomp.job WHERE finished_at IS NULL"))


@pytest.mark.session
@pytest.mark.parametrize(("listen", "poll_s"), [(True, 60), (False, 0.2)])
def test_an_idle_worker_hears_of_a_job_and_finds_it_without_hearing(
    connection: Connection, database: str, listen: bool, poll_s: float
):
    """The worker looks for jobs by itself after 30 s at the earliest, or all the time."""
    with running(database, LISTEN=listen, POLL_S=poll_s) as process:
        (first,) = add_jobs(connection, "a")
        wait_until(lambda: job(connection, first)["status"] == "succeeded")
        wait_until(lambda: has_looked_since(connection, job(connection, first)["finished_at"]))
        (job_id,) = add_jobs(connection, "a")
        wait_until(lambda: job(connection, job_id)["status"] == "succeeded", 29)
        process.send_signal(signal.SIGTERM)
        assert process.wait(45) == 0


# --- batches that overlap


def test_while_a_batch_runs_the_next_is_claimed_and_its_leases_are_renewed(
    connection: Connection, database: str, gate: Path
):
    ids = add_jobs(connection, f"until {gate}", "a", "b", "c", "d", "e")
    with working(database, lease_s=6):
        wait_until(lambda: list(statuses(connection).values()) == ["running"] * 4 + ["queued"] * 2)
        claimed = job(connection, ids[2])
        wait_until(lambda: job(connection, ids[2])["lease_expires_at"] > claimed["lease_expires_at"])
        assert job(connection, ids[0])["status"] == "running"
        time.sleep(0.1)  # the time that "ready" must contain
        gate.touch()
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    assert claims(connection) == dict.fromkeys(ids, 1)
    assert predictions(connection)[ids[2]]["timings"]["ready"] > 100


def test_a_busy_worker_takes_one_job_more_as_well(connection: Connection, database: str, gate: Path):
    slow, beside, other = add_jobs(connection, f"until {gate}", "a", "b")
    with working(database):
        wait_until(lambda: job(connection, other)["status"] == "running")
        assert job(connection, slow)["status"] == "running"
        gate.touch()
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    assert claims(connection) == dict.fromkeys([slow, beside, other], 1)


def test_a_busy_worker_leaves_jobs_to_idle_ones(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch, gate: Path
):
    # Longer than a commit may wait for the disk, for which the idle worker waits.
    monkeypatch.setattr("loracomp.worker.claimer.GIVE_WAY_S", 60)
    found: list[int] = []
    claim_of_a_worker = Claimer._claim

    def noted(worker: Claimer, *arguments: Any) -> tuple[Job, ...]:
        jobs = claim_of_a_worker(worker, *arguments)
        found.append(len(jobs))
        return jobs

    monkeypatch.setattr(Claimer, "_claim", noted)
    (slow,) = add_jobs(connection, f"until {gate}")
    with working(database, worker="busy", listen=True):
        wait_until(lambda: found[-2:] == [1, 0])  # it has the job, has looked for more, and gives way from now on
        with working(database, worker="idle", listen=True):
            wait_until(lambda: "idle" in reported(connection))
            with connection.transaction():  # if the idle worker looked between two, it would give way itself
                others = add_jobs(connection, *"aaa")
            wait_until(lambda: {job(connection, each)["status"] for each in others} == {"succeeded"})
        assert job(connection, slow)["status"] == "running"
        gate.touch()
    assert {predictions(connection)[each]["worker"] for each in others} == {"idle"}


def test_a_stopping_worker_gives_back_what_waits_at_once(connection: Connection, database: str, gate: Path):
    ids = add_jobs(connection, f"until {gate}", "a", "b", "c")
    with working(database) as worker:
        wait_until(lambda: set(statuses(connection).values()) == {"running"})
        worker.stop()
        wait_until(lambda: list(statuses(connection).values()) == ["running"] * 2 + ["queued"] * 2)
        gate.touch()
    assert list(statuses(connection).values()) == ["succeeded"] * 2 + ["queued"] * 2
    assert [job(connection, each)["attempts"] for each in ids] == [1, 1, 0, 0]


@pytest.mark.parametrize("limits", [{"lease_s": 4}, {"timeout_s": 4}])
def test_what_the_model_is_not_free_for_in_time_is_given_back(
    connection: Connection, database: str, limits: dict[str, float], gate: Path
):
    running_jobs = add_jobs(connection, f"until {gate}", "a")
    waiting = add_jobs(connection, "b", "c", timeout_s=limits.get("timeout_s", 600))
    with working(database, lease_s=limits.get("lease_s", 60)):
        wait_until(lambda: {job(connection, each)["status"] for each in waiting} == {"running"})
        wait_until(lambda: {job(connection, each)["status"] for each in waiting} == {"queued"})
        assert {job(connection, each)["status"] for each in running_jobs} == {"running"}
        assert claims(connection) == dict.fromkeys([*running_jobs, *waiting], 1)
        gate.touch()
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    rows = [job(connection, each) for each in [*running_jobs, *waiting]]
    assert {(row["attempts"], row["expired_leases"]) for row in rows} == {(1, 0)}


def test_beside_a_job_that_runs_alone_nothing_is_claimed(connection: Connection, database: str, gate: Path):
    (suspect,) = add_jobs(connection, f"until {gate}", expired_leases=1)
    others = add_jobs(connection, "a", "b")
    with working(database) as worker:
        wait_until(lambda: job(connection, suspect)["status"] == "running")
        for _ in range(3):
            wait_for_a_look(worker)
        assert {job(connection, each)["status"] for each in others} == {"queued"}
        gate.touch()
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})


def test_a_kill_charges_neither_the_batch_that_runs_nor_the_one_that_waits(connection: Connection, database: str):
    ids = add_jobs(connection, "sleep 60", "a", "b", "c", max_attempts=1)
    with running(database, BATCH_SIZE=2) as process:
        wait_until(lambda: set(statuses(connection).values()) == {"running"})
        process.kill()
    expire_leases(connection)
    connection.execute("SELECT loracomp.rescue_jobs()")
    rows = [job(connection, each) for each in ids]
    assert [(row["status"], row["attempts"], row["expired_leases"]) for row in rows] == [("queued", 0, 1)] * 4


class Noting(Obedient):
    """An engine that notes which jobs the model has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []

    def end(self, flight: InFlight) -> None:
        self.begun.append(flight.job.id)
        super().end(flight)


def test_the_model_goes_on_while_a_batch_is_recorded(connection: Connection, database: str, gate: Path):
    ids = add_jobs(connection, f"until {gate}", *"abcde")
    engine = Noting()
    with db.connect(database) as other, working(database, engine, held_batches=2, lease_s=9):
        wait_until(lambda: job(connection, ids[0])["status"] == "running")
        with other.transaction():
            other.execute("LOCK TABLE loracomp.prediction IN ACCESS EXCLUSIVE MODE")
            gate.touch()
            wait_until(lambda: engine.begun == ids[:4])
            wait_for_a_heartbeat(connection, ids[2])
            # A worker holds a bounded number of jobs, which includes the jobs that wait to be recorded.
            assert engine.begun == ids[:4]
            assert "succeeded" not in statuses(connection).values()
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    times = [job(connection, each)["finished_at"] for each in ids]
    assert times == sorted(times)


# --- jobs that end at different times


class Stepping(Obedient):
    """An engine that answers "text N" in N steps of a fiftieth of a second, and every other prompt in its next step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[set[int]] = []
        """Number of running jobs in each step."""
        self._spent: Counter[InFlight] = Counter()

    def step(self) -> list[InFlight]:
        time.sleep(0.02)
        self.schedule()
        self.steps.append({flight.job.id for flight in self.flights})
        self._spent.update(self.flights)
        ended = [flight for flight in self.flights if self._ends(flight)]
        for flight in ended:
            self.end(flight)
        self.flights = [flight for flight in self.flights if flight not in ended]
        return ended

    def _ends(self, flight: InFlight) -> bool:
        words = flight.job.prompt.split()
        return not flight.wanted() or words[0] != "text" or self._spent[flight] >= int(words[1])

    def end(self, flight: InFlight) -> None:
        if flight.wanted():
            super().end(flight)
        else:
            flight.fail(JobError("its lease was lost", code="lease_lost"))


def test_jobs_of_several_claims_join_and_each_is_recorded_when_it_ends(connection: Connection, database: str):
    (long,) = add_jobs(connection, "text 100000")
    engine = Stepping()
    with working(database, engine, lease_s=6) as worker:
        wait_until(lambda: job(connection, long)["status"] == "running")
        ids = add_jobs(connection, "text 9", "a", "b")
        wait_until(lambda: {job(connection, each)["status"] for each in ids} == {"succeeded"})
        assert job(connection, long)["status"] == "running"
        connection.execute("SELECT loracomp.cancel_job(%s)", (long,))
        (after_it,) = add_jobs(connection, "c")
        wait_until(lambda: job(connection, after_it)["status"] == "succeeded")
        wait_until(lambda: not worker._leases.held)
    assert statuses(connection)[long] == "cancelled"
    assert any({long, ids[0]} <= step for step in engine.steps)
    assert claims(connection) == dict.fromkeys([long, *ids, after_it], 1)
    assert {row["batch_size"] for row in predictions(connection).values()} <= {1, 2, 3, 4}


@pytest.mark.session
def test_a_cancelled_job_leaves_the_model_at_once_though_its_lease_is_long(connection: Connection, database: str):
    (cancelled,) = add_jobs(connection, "text 100000")
    with working(database, Stepping(), listen=True, lease_s=3600) as worker:
        wait_until(lambda: job(connection, cancelled)["status"] == "running")
        wait_until(lambda: worker._heartbeat._listening)
        connection.execute("SELECT loracomp.cancel_job(%s)", (cancelled,))
        wait_until(lambda: not worker._leases.held)


def test_a_job_whose_time_is_over_leaves_the_model_at_once_though_its_lease_is_long(
    connection: Connection, database: str
):
    (slow,) = add_jobs(connection, "text 100000", timeout_s=1)
    with working(database, Stepping(), lease_s=3600) as worker:
        wait_until(lambda: job(connection, slow)["status"] == "running")
        wait_until(lambda: not worker._leases.held)
    assert job(connection, slow)["error_code"] == "timed_out"


@pytest.mark.parametrize(("max_attempts", "status"), [(1, "failed"), (2, "queued")])
def test_an_attempt_beyond_the_jobs_timeout_counts_and_names_the_limit(
    connection: Connection, database: str, max_attempts: int, status: str, gate: Path
):
    """Also in a batch: the others are answered."""
    (slow,) = add_jobs(connection, "text 100000", timeout_s=300, max_attempts=max_attempts)
    others = add_jobs(connection, "text 9", "a", max_attempts=1)
    with working(database, Stepping()) as worker:
        wait_until(lambda: len(worker._leases.held) > 1)
        (held,) = (each for each in worker._leases.held if each.id == slow)
        worker._leases._held_since[held] -= 300  # so that a busy machine takes no part in it
        wait_until(lambda: job(connection, slow)["error_code"])
        connection.execute("UPDATE loracomp.job SET run_at = '3000-01-01' WHERE id = %s AND status = 'queued'", (slow,))
        wait_until(lambda: {job(connection, each)["status"] for each in others} == {"succeeded"})
    row = job(connection, slow)
    assert (row["status"], row["attempts"], row["expired_leases"]) == (status, 1, 0)
    assert (row["error_code"], row["error"]) == ("timed_out", "it took longer than its timeout_s of 300 s")
    (attempt,) = connection.execute("SELECT outcome, reason FROM loracomp.job_attempt WHERE job_id = %s", (slow,))
    assert attempt == {"outcome": {"queued": "given back"}.get(status, status), "reason": "timed_out"}


class Gathering(Obedient):
    """An engine that answers when it has four jobs, all in one step."""

    def step(self) -> list[InFlight]:
        time.sleep(0.02)
        return super().step() if len(self.flights) >= 4 else []


def test_jobs_of_several_claims_may_end_in_one_step(connection: Connection, database: str):
    add_jobs(connection, *"abcd")
    with working(database, Gathering()):
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    rows = predictions(connection).values()
    assert len({row["timings"]["claim"] for row in rows}) == 2
    assert {row["batch_size"] for row in rows} == {4}


def test_no_more_is_held_than_there_is_room_for(connection: Connection, database: str):
    ids = add_jobs(connection, *["text 40"] * 5, "a", "b")
    with working(database, engine := Stepping(), held_batches=2):
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    assert max(map(len, engine.steps)) <= 4
    assert claims(connection) == dict.fromkeys(ids, 1)


def test_a_fault_among_jobs_of_several_claims_costs_the_culprit_alone(connection: Connection, database: str):
    (long,) = add_jobs(connection, "text 60", max_attempts=1)
    with working(database, Stepping()):
        wait_until(lambda: job(connection, long)["status"] == "running")
        culprit, other = add_jobs(connection, "raise", "text 5", max_attempts=1)
        wait_until(lambda: not {"queued", "running"} & set(statuses(connection).values()))
    assert statuses(connection) == {long: "succeeded", culprit: "failed", other: "succeeded"}
    assert job(connection, culprit)["error"] == "ValueError: a fault"


def test_told_to_stop_it_finishes_what_runs_and_no_more(connection: Connection, database: str):
    (long,) = add_jobs(connection, "text 60")
    with working(database, Stepping(), held_batches=1) as worker:
        wait_until(lambda: job(connection, long)["status"] == "running")
        worker.stop()
        (late,) = add_jobs(connection, "a")
    assert statuses(connection) == {long: "succeeded", late: "queued"}
