"""Real worker processes on a real queue: stopped, killed, frozen, cut off; what they hold is never lost or doubled."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from job_data import BASE, add_jobs, claim, expire_leases, job, statuses, wait_for_a_lock
from job_fixtures import cleared_connection, database_of_a_module, gate_of_a_test  # noqa: F401
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection, rows_of
from loracomp.database.queries import QUERIES
from loracomp.engine.inflight import InFlight
from loracomp.errors import DeviceFailedError, DeviceHungError, JobError, SchemaMismatchError
from loracomp.records import Job
from loracomp.worker.claimer import Claimer
from loracomp.worker.endpoint import DatabaseSample
from loracomp.worker.heartbeat import Heartbeat
from loracomp.worker.leases import Leases, claim_jobs
from loracomp.worker.link import Link
from loracomp.worker.presence import Presence
from loracomp.worker.process import leaves_after_s
from loracomp.worker.worker import Worker
from queue_worker import Obedient
from worker_helpers import Crowded, changed, claims, drain, drain_here, make_due, running, wait_until, working


def predictions(connection: Connection) -> dict[int, dict[str, Any]]:
    return {row["job_id"]: row for row in connection.execute("SELECT * FROM loracomp.prediction")}


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


def connections_of_workers(connection: Connection) -> int:
    statement = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name LIKE 'loracomp %' AND datname = current_database()"
    )
    (row,) = connection.execute(statement)
    return row["count"]


SEEN = "SELECT max(seen_at) FROM loracomp.worker"


def reported(connection: Connection) -> list[str]:
    """Return the last status that each worker reported."""
    return [row["status"] for row in connection.execute("SELECT status FROM loracomp.worker")]


def wait_for_a_heartbeat(connection: Connection, running_job: int) -> None:
    """Wait until the worker has renewed this job's lease, and has been told which other leases are lost."""
    before = job(connection, running_job)["lease_expires_at"]
    wait_until(lambda: job(connection, running_job)["lease_expires_at"] > before)


def make_due_until(connection: Connection, job_id: int) -> None:
    """Make the job due again whenever it waits for another attempt, until it is answered."""
    wait_until(lambda: make_due(connection) or job(connection, job_id)["status"] == "succeeded")


def wait_for_a_report(connection: Connection) -> None:
    before = connection.execute(SEEN).fetchone()
    wait_until(lambda: connection.execute(SEEN).fetchone() != before)


def wait_for_a_look(worker: Worker) -> None:
    """Wait until the worker has asked for jobs once more."""
    before = worker._claimer.looked_at
    wait_until(lambda: worker._claimer.looked_at != before)


@contextmanager
def beating(
    database: str,
    leases: Leases,
    notified: Mapping[str, Event] | None = None,
    sample: DatabaseSample | None = None,
    lease_s: float = 1,
) -> Iterator[None]:
    """Run the heartbeat of an idle worker, whose statements may take a sixth of a lease."""
    who = {"name": "w", "base_model": BASE, "device": "cpu/float32"}
    presence = Presence(who, lambda: {"status": "idle", "looked_s": None}, lease_s, sample)
    link = Link(database, "loracomp heartbeat", Event(), statement_timeout_s=30, vectors=False)
    with Heartbeat(link, leases, presence, lease_s=lease_s, notified=notified or {}):
        yield


# --- the loop


def test_two_workers_share_500_jobs_and_do_none_twice(connection: Connection, database: str):
    with running(database, WORKER="one") as one, running(database, WORKER="two") as two:
        for name in ("one", "two"):
            wait_until(lambda name=name: is_connected(connection, f"loracomp worker {name}"))
        ids = add_jobs(connection, *(f"job {number}" for number in range(500)))
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"}, 30)
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
                ended.result(20)
        finally:
            worker.stop()
    assert (statuses(connection), job(connection, job_id)["attempts"]) == ({job_id: "queued"}, 0)
    assert "not_recorded" in caplog.text


@pytest.mark.parametrize("error", ["lock_not_available", "query_canceled"])
def test_jobs_wait_while_a_locked_table_keeps_them_from_being_routed(connection: Connection, database: str, error: str):
    """The worker's role has a lock_timeout or a statement_timeout, and an index is being built."""
    (waiting,) = add_jobs(connection, "route-by ffff", max_attempts=1)
    with refusing_to_route(connection, error), working(database, lease_s=1):
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
    with working(database, lease_s=2):
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


@pytest.mark.parametrize("limits", [{"lease_s": 1}, {"timeout_s": 2}])
def test_what_the_model_is_not_free_for_in_time_is_given_back(
    connection: Connection, database: str, limits: dict[str, float], gate: Path
):
    running_jobs = add_jobs(connection, f"until {gate}", "a")
    waiting = add_jobs(connection, "b", "c", timeout_s=limits.get("timeout_s", 600))
    with working(database, lease_s=limits.get("lease_s", 60)):
        wait_until(lambda: {job(connection, each)["status"] for each in waiting} == {"running"})
        wait_until(lambda: {job(connection, each)["status"] for each in waiting} == {"queued"})
        assert {job(connection, each)["status"] for each in running_jobs} == {"running"}
        gate.touch()
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    rows = [job(connection, each) for each in waiting]
    assert {(row["attempts"], row["expired_leases"]) for row in rows} == {(1, 0)}
    assert claims(connection) == {**dict.fromkeys(running_jobs, 1), **dict.fromkeys(waiting, 2)}


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
    with db.connect(database) as other, working(database, engine, held_batches=2, lease_s=3):
        wait_until(lambda: job(connection, ids[0])["status"] == "running")
        with other.transaction():
            other.execute("SELECT FROM loracomp.job WHERE id = %s FOR UPDATE", (ids[0],))
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
    with working(database, engine, lease_s=1) as worker:
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


# --- faults of jobs


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
        wait_until(lambda: statuses(connection) == dict.fromkeys(ids, "succeeded"), 10)
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
        assert stopping.wait(20)
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


def test_a_job_that_kills_its_worker_costs_no_other_job_an_attempt(connection: Connection, database: str):
    innocent = add_jobs(connection, *"abc", max_attempts=1)
    (poison,) = add_jobs(connection, "die", max_attempts=2)
    innocent += add_jobs(connection, *"def", max_attempts=1)
    codes = []
    while "running" in statuses(connection).values() or "queued" in statuses(connection).values():
        codes.append(drain(database)[0])
        expire_leases(connection)
        connection.execute("SELECT loracomp.rescue_jobs()")
        make_due(connection)
    # In the batch, and alone twice: the second time after the others, which have cost fewer leases.
    assert codes == [-signal.SIGKILL] * 3
    failed = job(connection, poison)
    assert (failed["status"], failed["error_code"], failed["attempts"]) == ("failed", "lease_expired", 2)
    for job_id in innocent:
        row = job(connection, job_id)
        assert (row["status"], row["attempts"]) == ("succeeded", 1), row


# --- faults of workers


def test_a_killed_workers_jobs_are_taken_over_when_its_lease_runs_out(
    connection: Connection, database: str, gate: Path
):
    ids = add_jobs(connection, f"until {gate}", "b", "c")
    with running(database, LEASE_S=1, WORKER="killed") as process:
        wait_until(lambda: "running" in statuses(connection).values())
        process.kill()
    gate.touch()
    with running(database, LEASE_S=1, WORKER="heir"):
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    assert claims(connection) == dict.fromkeys(ids, 2)
    assert {(row["worker"], row["attempt"]) for row in predictions(connection).values()} == {("heir", 1)}


def test_a_frozen_workers_late_result_changes_nothing_and_it_carries_on(
    connection: Connection, database: str, gate: Path
):
    (job_id,) = add_jobs(connection, f"until {gate}")
    with running(database, LEASE_S=1, WORKER="frozen") as process:
        wait_until(lambda: job(connection, job_id)["status"] == "running")
        process.send_signal(signal.SIGSTOP)
        gate.touch()
        expire_leases(connection)
        connection.execute("SELECT loracomp.rescue_jobs()")
        make_due(connection)
        drain_here(database, worker="other")
        before = predictions(connection)
        process.send_signal(signal.SIGCONT)
        (after_it,) = add_jobs(connection, "carry on")
        wait_until(lambda: job(connection, after_it)["status"] == "succeeded")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=45)
    found = predictions(connection)
    assert found[job_id] == before[job_id]
    assert (found[job_id]["worker"], found[after_it]["worker"]) == ("other", "frozen")
    assert f"fence_void jobs={job_id}" in log or f"leases_lost jobs={job_id}" in log


def rescued(connection: Connection, job_id: int) -> bool:
    """Take away leases that have ended; whether this job has lost its own, by this call or by a worker's keeper."""
    connection.execute("SELECT loracomp.rescue_jobs()")
    return job(connection, job_id)["status"] != "running"


def test_heartbeats_keep_a_lease_beyond_its_length_and_up_to_the_timeout(connection: Connection, database: str):
    (long,) = add_jobs(connection, "sleep 2.5")
    (hung,) = add_jobs(connection, "sleep 600", timeout_s=2, max_attempts=1)
    with running(database, LEASE_S=1, BATCH_SIZE=1, HELD_BATCHES=1, HANG_S=3600) as process:
        wait_until(lambda: job(connection, long)["status"] == "succeeded")
        wait_until(lambda: job(connection, hung)["status"] == "running")
        until = job(connection, hung)["claimed_at"] + timedelta(seconds=2)
        wait_until(lambda: job(connection, hung)["lease_expires_at"] >= until)
        # Either this call takes the job's lease away, or the worker's own keeper did so before.
        wait_until(lambda: rescued(connection, hung))
        row = connection.execute("SELECT *, now() AS now FROM loracomp.job WHERE id = %s", (hung,)).fetchone()
        assert row is not None
        assert (row["status"], row["error_code"], row["expired_leases"]) == ("queued", "timed_out", 1)
        assert row["now"] > until
        process.kill()
    assert claims(connection) == {long: 1, hung: 1}


def test_a_worker_whose_device_hangs_ends_and_says_where(connection: Connection, database: str):
    first, second = add_jobs(connection, "sleep 600", "b", timeout_s=4)
    with running(database, LEASE_S=6, HANG_S=1) as process:
        _, log = process.communicate(timeout=30)
    assert process.returncode == DeviceHungError.exit_code
    assert log.index(f"leases_lost jobs={first},{second}") < log.index("hangs error=")
    assert "in _answer" in log
    assert claims(connection) == {first: 1, second: 1}
    # It gave neither back: whichever it was, each is claimed alone from now on.
    wait_until(
        lambda: connection.execute("SELECT loracomp.rescue_jobs()") and "running" not in statuses(connection).values()
    )
    rows = [job(connection, each) for each in (first, second)]
    assert [(row["status"], row["attempts"], row["expired_leases"]) for row in rows] == [("queued", 0, 1)] * 2


def test_a_job_with_a_long_timeout_hides_no_device_that_hangs(connection: Connection, database: str):
    (job_id,) = add_jobs(connection, "sleep 600", timeout_s=86400, max_attempts=1)
    with running(database, LEASE_S=1, HANG_S=1) as process:
        process.communicate(timeout=45)
    assert process.returncode == DeviceHungError.exit_code
    wait_until(lambda: rescued(connection, job_id))
    row = job(connection, job_id)
    assert (row["status"], row["attempts"], row["expired_leases"]) == ("queued", 0, 1)


@pytest.mark.parametrize("part", ["device", "encoder"])
def test_a_worker_whose_device_computes_nothing_any_more_ends(connection: Connection, database: str, part: str):
    """Otherwise it would go on and fail everybody's jobs. What broke the device runs alone from then on."""
    breaking, other = add_jobs(connection, f"break {part}", "b", max_attempts=1)
    with running(database, BATCH_SIZE=1, LEASE_S=1) as process:
        _, log = process.communicate(timeout=45)
    assert process.returncode == DeviceFailedError.exit_code, log
    assert (job(connection, breaking)["status"], job(connection, other)["status"]) == ("running", "queued")
    wait_until(lambda: rescued(connection, breaking))
    rows = [job(connection, each) for each in (breaking, other)]
    assert [(row["attempts"], row["expired_leases"]) for row in rows] == [(0, 1), (0, 0)]


def test_a_worker_that_goes_on_with_lost_jobs_does_not_hang(connection: Connection, database: str):
    """A submitter's short timeout ends no worker."""
    (slow,) = add_jobs(connection, "plod 5", timeout_s=1, max_attempts=1)
    with running(database, LEASE_S=1, HANG_S=1) as process:
        wait_until(lambda: job(connection, slow)["status"] == "running")
        (after_it,) = add_jobs(connection, "carry on")
        wait_until(lambda: job(connection, after_it)["status"] == "succeeded")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=45)
    assert process.returncode == 0
    assert f"leases_lost jobs={slow}" in log
    assert job(connection, slow)["error_code"] == "timed_out"


@contextmanager
def embeddings_locked(database: str) -> Iterator[Connection]:
    with db.connect(database) as other, other.transaction():
        other.execute("LOCK TABLE loracomp.example_embedding IN ACCESS EXCLUSIVE MODE")
        yield other


def test_a_worker_that_waits_for_the_database_does_not_hang(connection: Connection, database: str):
    """For longer than the job's timeout and HANG_S: the device has nothing to do with it."""
    (waiting,) = add_jobs(connection, "look-up", timeout_s=1)
    with running(database, LEASE_S=1, HANG_S=1, STATEMENT_TIMEOUT_S=30) as process:
        with embeddings_locked(database):
            wait_until(lambda: job(connection, waiting)["status"] == "running")
            wait_for_a_lock(connection)
            time.sleep(4)
            assert process.poll() is None
        make_due_until(connection, waiting)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=45)
    assert process.returncode == 0, log
    assert "hangs error=" not in log


def test_what_waits_for_the_database_is_given_back(connection: Connection, database: str):
    """Before its lease is over, so that no job is claimed alone from then on, or pays with an attempt."""
    waiting = add_jobs(connection, "look-up", "look-up", timeout_s=8, max_attempts=1)
    with working(database, lease_s=2, statement_timeout_s=1):
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
    assert (job(connection, job_id)["error_code"], claims(connection)[job_id]) == ("timed_out", 2)


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
    with working(database, poll_s=60, listen=True):
        until = time.monotonic() + 2
        while time.monotonic() < until:
            connection.execute("NOTIFY loracomp_job")
    assert 10 < len(claimed) < 60


def test_a_job_that_waits_for_the_database_is_given_back_when_the_worker_is_to_stop(
    connection: Connection, database: str
):
    (waiting,) = add_jobs(connection, "look-up")
    with embeddings_locked(database):
        with working(database, statement_timeout_s=1):
            wait_until(lambda: job(connection, waiting)["status"] == "running")
        row = job(connection, waiting)
        assert (row["status"], row["attempts"], row["expired_leases"]) == ("queued", 0, 0)


def test_a_cancelled_job_leaves_the_model_to_others(connection: Connection, database: str):
    (endless,) = add_jobs(connection, "write")
    with running(database, LEASE_S=1, HANG_S=3600):
        wait_until(lambda: job(connection, endless)["status"] == "running")
        connection.execute("SELECT loracomp.cancel_job(%s)", (endless,))
        (after_it,) = add_jobs(connection, "carry on")
        wait_until(lambda: job(connection, after_it)["status"] == "succeeded")
    assert statuses(connection)[endless] == "cancelled"


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
    worker = Worker(database, Obedient(), base_model=BASE, settings=Settings(poll_s=0.05, lease_s=1), drain=True)
    monkeypatch.setattr(Leases, "let_go", slowly)
    with caplog.at_level("WARNING"):
        worker.run()
    assert statuses(connection) == dict.fromkeys(ids, "succeeded")
    assert "leases_lost" not in caplog.text


def test_a_cancelled_jobs_result_is_dropped_and_the_rest_of_its_batch_is_recorded(
    connection: Connection, database: str, gate: Path
):
    first, cancelled = add_jobs(connection, f"until {gate}", "b")
    with running(database, "--drain", LEASE_S=1) as process:
        wait_until(lambda: job(connection, cancelled)["status"] == "running")
        connection.execute("SELECT loracomp.cancel_job(%s, 'changed my mind')", (cancelled,))
        wait_for_a_heartbeat(connection, first)
        gate.touch()
        _, log = process.communicate(timeout=45)
    assert process.returncode == 0
    assert statuses(connection) == {first: "succeeded", cancelled: "cancelled"}
    assert list(predictions(connection)) == [first]
    assert f"leases_lost jobs={cancelled}" in log


def test_a_worker_forgets_what_it_lost_before_the_model_began_it(connection: Connection, database: str, gate: Path):
    """A worker that holds jobs claims no suspect and no partial batch, so it must not count lost jobs as held."""
    ids = add_jobs(connection, f"until {gate}", "a", "b", "c")
    with working(database, lease_s=3) as worker:
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
    monkeypatch.setitem(QUERIES, query, "SELECT pg_sleep(10)")
    (job_id,) = add_jobs(connection, "a")
    leases = Leases(lease_s=1)
    with beating(database, leases, notified={"loracomp_job": Event()}, sample=DatabaseSample()):
        jobs = claim(connection, lease_s=1)
        leases.hold(jobs)
        claimed = job(connection, job_id)["claimed_at"]
        wait_until(lambda: job(connection, job_id)["lease_expires_at"] > claimed + timedelta(seconds=3))
        assert all(leases.still_leased(each) for each in jobs)


@pytest.mark.session
def test_a_worker_whose_connections_are_cut_goes_on_by_itself(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    ids = add_jobs(connection, "a", "cut", "b")
    monkeypatch.setenv("CUT", "1")
    code, log = drain(database)
    assert code == 0, log
    assert "database_away" in log
    assert statuses(connection) == dict.fromkeys(ids, "succeeded")
    assert claims(connection) == dict.fromkeys(ids, 1)


# --- signals


def test_sigterm_finishes_what_runs_and_claims_nothing_more(connection: Connection, database: str, gate: Path):
    running_job, waiting = add_jobs(connection, f"until {gate}", "b")
    with running(database, BATCH_SIZE=1) as process:
        wait_until(lambda: job(connection, running_job)["status"] == "running")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: reported(connection) == ["stopping"])
        gate.touch()
        assert process.wait(45) == 0
    assert statuses(connection) == {running_job: "succeeded", waiting: "queued"}


def test_sigterm_releases_what_does_not_fit_into_the_grace_time(connection: Connection, database: str):
    ids = add_jobs(connection, "sleep 600", "b")
    with running(database, GRACE_S=2) as process:
        wait_until(lambda: "running" in statuses(connection).values())
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(45) == 0  # before the model comes back
    assert time.monotonic() - started > leaves_after_s(2)
    assert [job(connection, each)["status"] for each in ids] == ["queued", "queued"]
    assert [job(connection, each)["attempts"] for each in ids] == [0, 0]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_releases_at_once(connection: Connection, database: str, second: signal.Signals):
    """Its exit code says that neither the model came back nor the grace time was over."""
    (job_id,) = add_jobs(connection, "sleep 600")
    with running(database, GRACE_S=600) as process:
        wait_until(lambda: job(connection, job_id)["status"] == "running")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: reported(connection) == ["stopping"])  # of two at once, a process may hear one
        process.send_signal(second)
        assert process.wait(45) == 128 + second
    assert reported(connection) == ["stopped"]
    assert (job(connection, job_id)["status"], job(connection, job_id)["attempts"]) == ("queued", 0)


@pytest.mark.session
def test_an_idle_worker_leaves_at_once(connection: Connection, database: str):
    """Long before it would look again or its grace time is over."""
    with running(database, POLL_S=60, GRACE_S=600) as process:
        wait_until(lambda: reported(connection) == ["idle"])
        process.send_signal(signal.SIGINT)
        assert process.wait(29) == 0


@pytest.mark.parametrize(("grace_s", "seconds"), [(30, 28), (20, 18), (2, 1.8), (0, 0)])
def test_some_of_the_grace_time_is_kept_to_give_back_what_runs(grace_s: float, seconds: float):
    assert leaves_after_s(grace_s) == seconds


@pytest.mark.session
def test_a_worker_has_five_connections(connection: Connection, database: str):
    """While it works, when it hears of jobs, when it gives back what runs."""
    ids = add_jobs(connection, *["sleep 0.2", "a", "refuse", "b"] * 8)
    counted: list[int] = []

    def counting(condition: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: counted.append(connections_of_workers(connection)) or condition()

    with running(database, BATCH_SIZE=2, LEASE_S=1) as process:
        wait_until(counting(lambda: not {"queued", "running"} & set(statuses(connection).values())))
        (slow,) = add_jobs(connection, "sleep 600")
        wait_until(counting(lambda: job(connection, slow)["status"] == "running"))
        process.send_signal(signal.SIGTERM)
        wait_until(counting(lambda: reported(connection) == ["stopping"]))
        process.send_signal(signal.SIGTERM)
        wait_until(counting(lambda: process.poll() is not None))
    assert max(counted) == 5
    assert claims(connection) == dict.fromkeys([*ids, slow], 1)


@pytest.mark.session
def test_a_server_that_only_reads_is_waited_out(connection: Connection, database: str):
    """A standby behind the address of a primary only reads, until the address leads to the new primary."""
    connection.execute("SET default_transaction_read_only = off")
    name = connection.info.dbname
    opened = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"

    def sessions() -> int:
        return connection.execute(opened).fetchone()["sessions"]

    with running(database, POLL_S=0.05, WORKER="patient") as process:
        wait_until(lambda: connection.execute("SELECT name FROM loracomp.worker WHERE name = 'patient'").fetchone())
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        try:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'loracomp %%'"
            connection.execute(f"{cut} AND datname = %s".encode(), [name])
            (asked,) = add_jobs(connection, "a")
            before = sessions()
            wait_until(lambda: sessions() >= before + 4)  # it has connected again, and been refused
            assert process.poll() is None
            assert job(connection, asked)["status"] == "queued"
        finally:
            connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
        wait_until(lambda: job(connection, asked)["status"] == "succeeded")
        assert job(connection, asked)["attempts"] == 1
