"""Real worker processes: killed, frozen, hung, cut off, told to stop; what they hold is never lost or doubled."""

import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from job_data import add_jobs, expire_leases, job, statuses, wait_for_a_lock
from job_fixtures import cleared_connection, database_of_a_module, gate_of_a_test  # noqa: F401
from loracomp.database.connections import Connection
from loracomp.errors import DeviceFailedError, DeviceHungError
from loracomp.worker.process import leaves_after_s
from worker_helpers import (
    claims,
    drain,
    drain_here,
    embeddings_locked,
    make_due,
    predictions,
    reported,
    running,
    wait_for_a_heartbeat,
    wait_until,
)


def connections_of_workers(connection: Connection) -> int:
    statement = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name LIKE 'loracomp %' AND datname = current_database()"
    )
    (row,) = connection.execute(statement)
    return row["count"]


def make_due_until(connection: Connection, job_id: int) -> None:
    """Make the job due again whenever it waits for another attempt, until it is answered."""
    wait_until(lambda: make_due(connection) or job(connection, job_id)["status"] == "succeeded")


# --- faults of jobs


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
    with running(database, WORKER="killed") as process:
        wait_until(lambda: "running" in statuses(connection).values())
        process.kill()
    gate.touch()
    with running(database, WORKER="heir"):
        wait_until(lambda: "idle" in reported(connection))
        assert set(statuses(connection).values()) == {"running"}
        expire_leases(connection)
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"})
    assert claims(connection) == dict.fromkeys(ids, 2)
    assert {(row["worker"], row["attempt"]) for row in predictions(connection).values()} == {("heir", 1)}


def test_a_frozen_workers_late_result_changes_nothing_and_it_carries_on(
    connection: Connection, database: str, gate: Path
):
    (job_id,) = add_jobs(connection, f"until {gate}")
    with running(database, WORKER="frozen") as process:
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
    (long,) = add_jobs(connection, "sleep 5")
    (hung,) = add_jobs(connection, "sleep 600", timeout_s=2, max_attempts=1)
    with running(database, LEASE_S=3, BATCH_SIZE=1, HELD_BATCHES=1, HANG_S=3600) as process:
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
    first, second = add_jobs(connection, "sleep 600", "b", timeout_s=2)
    with running(database, LEASE_S=4, HANG_S=1) as process:
        _, log = process.communicate(timeout=60)
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
    with running(database, HANG_S=1) as process:
        process.communicate(timeout=45)
    assert process.returncode == DeviceHungError.exit_code
    expire_leases(connection)
    wait_until(lambda: rescued(connection, job_id))
    row = job(connection, job_id)
    assert (row["status"], row["attempts"], row["expired_leases"]) == ("queued", 0, 1)


@pytest.mark.parametrize("part", ["device", "encoder"])
def test_a_worker_whose_device_computes_nothing_any_more_ends(connection: Connection, database: str, part: str):
    """Otherwise it would go on and fail everybody's jobs. What broke the device runs alone from then on."""
    breaking, other = add_jobs(connection, f"break {part}", "b", max_attempts=1)
    with running(database, BATCH_SIZE=1) as process:
        _, log = process.communicate(timeout=45)
    assert process.returncode == DeviceFailedError.exit_code, log
    assert (job(connection, breaking)["status"], job(connection, other)["status"]) == ("running", "queued")
    expire_leases(connection)
    wait_until(lambda: rescued(connection, breaking))
    rows = [job(connection, each) for each in (breaking, other)]
    assert [(row["attempts"], row["expired_leases"]) for row in rows] == [(0, 1), (0, 0)]


def test_a_worker_that_goes_on_with_lost_jobs_does_not_hang(connection: Connection, database: str):
    """A submitter's short timeout ends no worker."""
    (slow,) = add_jobs(connection, "plod 6", timeout_s=1, max_attempts=1)
    with running(database, LEASE_S=1, HANG_S=3) as process:
        wait_until(lambda: job(connection, slow)["status"] == "running")
        (after_it,) = add_jobs(connection, "carry on")
        wait_until(lambda: job(connection, after_it)["status"] == "succeeded")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=45)
    assert process.returncode == 0
    assert f"leases_lost jobs={slow}" in log
    assert job(connection, slow)["error_code"] == "timed_out"


def test_a_worker_that_waits_for_the_database_does_not_hang(connection: Connection, database: str):
    """For longer than the job's timeout and HANG_S: the device has nothing to do with it."""
    (waiting,) = add_jobs(connection, "look-up", timeout_s=1)
    with running(database, LEASE_S=1, HANG_S=2, STATEMENT_TIMEOUT_S=30) as process:
        with embeddings_locked(database):
            wait_until(lambda: job(connection, waiting)["status"] == "running")
            wait_for_a_lock(connection)
            time.sleep(5)
            assert process.poll() is None
        make_due_until(connection, waiting)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=45)
    assert process.returncode == 0, log
    assert "hangs error=" not in log


def test_a_cancelled_job_leaves_the_model_to_others(connection: Connection, database: str):
    (endless,) = add_jobs(connection, "write")
    with running(database, LEASE_S=1, HANG_S=3600):
        wait_until(lambda: job(connection, endless)["status"] == "running")
        connection.execute("SELECT loracomp.cancel_job(%s)", (endless,))
        (after_it,) = add_jobs(connection, "carry on")
        wait_until(lambda: job(connection, after_it)["status"] == "succeeded")
    assert statuses(connection)[endless] == "cancelled"


def test_a_cancelled_jobs_result_is_dropped_and_the_rest_of_its_batch_is_recorded(
    connection: Connection, database: str, gate: Path
):
    first, cancelled = add_jobs(connection, f"until {gate}", "b")
    with running(database, "--drain", LEASE_S=6) as process:
        wait_until(lambda: job(connection, cancelled)["status"] == "running")
        connection.execute("SELECT loracomp.cancel_job(%s, 'changed my mind')", (cancelled,))
        wait_for_a_heartbeat(connection, first)
        gate.touch()
        _, log = process.communicate(timeout=45)
    assert process.returncode == 0
    assert statuses(connection) == {first: "succeeded", cancelled: "cancelled"}
    assert list(predictions(connection)) == [first]
    assert f"leases_lost jobs={cancelled}" in log


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

    with running(database, BATCH_SIZE=2) as process:
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
