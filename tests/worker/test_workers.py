"""The registry of workers: who is alive, doing what; told by real workers."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

from job_data import REPORT, add_jobs, claim, job, statuses
from job_fixtures import cleared_connection, database_of_a_module, gate_of_a_test  # noqa: F401
from loracomp import __version__
from loracomp.database import schema
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.metrics import totals
from worker_helpers import claims, running, wait_until, working


def workers(connection: Connection) -> dict[str, dict[str, Any]]:
    return {row["worker"]: row for row in connection.execute(QUERIES["worker_status"])}


def say(connection: Connection, **words: Any) -> None:
    connection.execute(QUERIES["report_worker"], {**REPORT, **words})


def seen(connection: Connection, name: str, **expected: Any) -> Callable[[], bool]:
    return lambda: expected.items() <= workers(connection).get(name, {}).items()


def test_a_worker_says_what_it_does_until_it_stops(connection: Connection, database: str, gate: Path):
    first, slow = add_jobs(connection, "a", f"until {gate}")
    (wrong,) = add_jobs(connection, "refuse")
    before = totals()
    with working(database, worker="one", lease_s=1, batch_size=1):
        wait_until(seen(connection, "one", status="busy", running=1))
        found = workers(connection)["one"]
        assert (found["pid"], found["code_version"], found["base_model"]) == (os.getpid(), __version__, "tiny")
        assert 0 <= found["oldest_claim_s"] < 60 and 0 <= found["looked_s"] < 60 and 0 <= found["seen_s"] < 60
        gate.touch()
        ended = {"succeeded": before["succeeded"] + 2, "failed": before["failed"] + 1}
        wait_until(seen(connection, "one", status="idle", running=0, **ended))
        assert workers(connection)["one"]["started_at"] == found["started_at"]
    assert workers(connection)["one"]["status"] == "stopped"
    assert [job(connection, each)["worker"] for each in (first, slow, wrong)] == ["one"] * 3


def test_one_that_has_claimed_since_its_report_is_busy(connection: Connection):
    """Not one that has taken the name of a dead one, which left running jobs."""
    add_jobs(connection, "a")
    say(connection, status="idle")
    assert (workers(connection)["w"]["status"], workers(connection)["w"]["looked_s"]) == ("idle", None)
    claim(connection)
    assert workers(connection)["w"]["status"] == "busy" and 0 <= workers(connection)["w"]["looked_s"] < 60
    say(connection, status="idle")
    assert (workers(connection)["w"]["status"], workers(connection)["w"]["running"]) == ("idle", 1)


def test_a_killed_worker_is_gone_when_its_lease_is_over(connection: Connection, database: str):
    add_jobs(connection, "sleep 60")
    with running(database, LEASE_S=1, WORKER="killed") as process:
        wait_until(seen(connection, "killed", status="busy", running=1))
        process.kill()
        wait_until(seen(connection, "killed", status="gone"))


def test_one_that_ends_before_the_model_comes_back_is_stopped_not_gone(connection: Connection, database: str):
    (job_id,) = add_jobs(connection, "sleep 600")
    with running(database, GRACE_S=600, WORKER="late") as process:
        wait_until(lambda: job(connection, job_id)["status"] == "running")
        process.terminate()
        wait_until(seen(connection, "late", status="stopping"))
        process.terminate()
        assert process.wait(45) == 128 + signal.SIGTERM
    assert workers(connection)["late"]["status"] == "stopped"
    # If it cannot report that it stopped, it is not gone either.
    connection.execute("UPDATE loracomp.worker SET status = 'stopping', seen_at = now() - interval '1 hour'")
    assert workers(connection)["late"]["status"] == "stopped"


def test_a_worker_reports_again_when_its_connection_was_cut(connection: Connection, database: str):
    with working(database, worker="cut", lease_s=1):
        wait_until(seen(connection, "cut", status="idle"))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'loracomp heartbeat%'"
        )
        cut = workers(connection)["cut"]["seen_at"]
        wait_until(lambda: workers(connection)["cut"]["seen_at"] > cut)


def test_a_process_that_takes_a_name_again_takes_its_entry(connection: Connection):
    say(connection, running_s=3600, succeeded=9, status="stopped")
    before = workers(connection)["w"]["started_at"]
    say(connection, running_s=3601, succeeded=10)
    assert workers(connection)["w"]["started_at"] == before
    say(connection, running_s=1, pid=8)
    found = workers(connection)["w"]
    assert (found["pid"], found["succeeded"], found["status"]) == (8, 0, "idle")
    assert found["started_at"] > before


def test_the_silent_are_forgotten_after_a_day(connection: Connection):
    say(connection, name="long gone")
    say(connection, name="gone")
    connection.execute("UPDATE loracomp.worker SET seen_at = now() - interval '25 hours' WHERE name = 'long gone'")
    connection.execute("UPDATE loracomp.worker SET seen_at = now() - interval '23 hours' WHERE name = 'gone'")
    say(connection)
    assert {name: row["status"] for name, row in workers(connection).items()} == {"w": "idle", "gone": "gone"}


def test_a_state_that_nobody_knows_is_refused(connection: Connection):
    with pytest.raises(errors.CheckViolation, match="worker_status_must_be_a_known_one"):
        say(connection, status="bored")


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1, 86401])
def test_a_silence_that_no_view_could_reckon_with_is_refused(connection: Connection, seconds: float):
    with pytest.raises(psycopg.DatabaseError, match="silent_after_s must be between 0 and 86400, and is"):
        say(connection, silent_after_s=seconds)
    say(connection)
    with pytest.raises(psycopg.DatabaseError, match="silent_after_s must be between 0 and 86400, and is"):
        say(connection, silent_after_s=seconds)
    assert workers(connection).keys() == {"w"}


def test_bi_has_workers_without_jobs(connection: Connection):
    say(connection, name="new", device="cuda:0/bfloat16")
    rows = connection.execute("SELECT worker, device, status FROM bi.worker_status").fetchall()
    assert rows == [{"worker": "new", "device": "cuda:0/bfloat16", "status": "idle"}]


def test_the_command_prints_them(
    connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from loracomp.cli.operations import workers as command

    monkeypatch.setenv("LORACOMP_DATABASE_URL", database)
    say(connection, name="[b]one", succeeded=42)
    command()
    assert "[b]one" in capsys.readouterr().out
    command(as_json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["worker"], row["status"], row["succeeded"]) == ("[b]one", "idle", 42)


def test_a_worker_goes_on_while_functions_are_made_anew(connection: Connection, database: str):
    """What an upgrade does to a worker that still runs."""
    ids = add_jobs(connection, *(f"job {number}" for number in range(60)))
    with working(database, worker="through", batch_size=1):
        wait_until(lambda: "succeeded" in statuses(connection).values())
        for _ in range(3):
            assert schema.initialize(database, again=True)
        assert list(statuses(connection)) == ids
        later = add_jobs(connection, "after it")
        wait_until(lambda: set(statuses(connection).values()) == {"succeeded"}, 60)
    assert claims(connection) == dict.fromkeys([*ids, *later], 1)
