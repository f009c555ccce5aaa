"""Runs workers for tests as processes, in a thread, or in this one until nothing is left to do, and waits for what they
do."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from job_data import BASE, job
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.engine.answering import PendingRequest
from loracomp.engine.inflight import InFlight
from loracomp.errors import JobError
from loracomp.records import Request
from loracomp.worker.worker import Worker
from queue_worker import Obedient

SCRIPT = Path(__file__).with_name("queue_worker.py")


class Crowded(Obedient):
    """Others take up the model until a job's time is over."""

    def end(self, flight: InFlight) -> None:
        flight.pending = [PendingRequest(Request(flight.job.prompt, None, 4), flight.wanted, begun=self.begins)]
        flight.worked_s = self.worked_s
        while flight.wanted():
            time.sleep(0.05)
        flight.fail(JobError("it is not wanted any more", code="lease_lost"))

    begins, worked_s = False, 0.0


@contextmanager
def running(database: str, *arguments: str, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a worker process, which is killed at the end if it still runs."""
    values = {"POLL_S": 0.05, "LEASE_S": 60, "BATCH_SIZE": 16, "GRACE_S": 30, **settings}
    environment = {**os.environ, **{f"LORACOMP_{name}": str(value) for name, value in values.items()}}
    command = [sys.executable, str(SCRIPT), database, *arguments]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def drain(database: str, **settings: Any) -> tuple[int, str]:
    """Run a worker that leaves when nothing is left to do; returns its exit code and log."""
    with running(database, "--drain", **settings) as process:
        _, log = process.communicate(timeout=60)
    return process.returncode, log


def drain_here(database: str, **settings: Any) -> None:
    """Do as `drain` does, but without a process, which takes a second to start."""
    Worker(database, Obedient(), base_model=BASE, settings=Settings(poll_s=0.05, **settings), drain=True).run()


@contextmanager
def working(database: str, engine: Obedient | None = None, **settings: Any) -> Iterator[Worker]:
    """Run a worker in a thread, with two jobs in each batch; stop it at the end and wait for it."""
    values = {"poll_s": 0.05, "batch_size": 2, "listen": False, **settings}
    worker = Worker(database, Obedient() if engine is None else engine, base_model=BASE, settings=Settings(**values))
    with in_thread(worker):
        yield worker


@contextmanager
def in_thread(worker: Worker) -> Iterator[None]:
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(worker.run)
        try:
            yield
        finally:
            worker.stop()
            running.result(30)


@contextmanager
def changed(connection: Connection, function: str, body: str) -> Iterator[None]:
    """Another body for a function of loracomp's, in plpgsql."""
    (row,) = connection.execute(
        "SELECT pg_get_functiondef(oid) AS before, format('%%I(%%s) RETURNS %%s', proname,"
        " pg_get_function_arguments(oid), pg_get_function_result(oid)) AS head"
        " FROM pg_proc WHERE pronamespace = 'loracomp'::regnamespace AND proname = %s",
        (function,),
    )
    connection.execute(
        f"CREATE OR REPLACE FUNCTION loracomp.{row['head']} LANGUAGE plpgsql AS $$ BEGIN {body} END $$".encode()
    )
    try:
        yield
    finally:
        connection.execute(row["before"].encode())


def make_due(connection: Connection) -> None:
    connection.execute("UPDATE loracomp.job SET run_at = now() WHERE status = 'queued' AND run_at > now()")


def wait_until(condition: Callable[[], object], seconds: float = 45) -> None:
    """Wait until the condition holds. The time is less than a lease, but long enough for a process to start on a busy
    machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def claims(connection: Connection) -> Counter[int]:
    """Return how often each job was claimed, according to the audit."""
    rows = connection.execute("SELECT entity_id FROM loracomp.audit_event WHERE new_status = 'running'")
    return Counter(row["entity_id"] for row in rows)


def predictions(connection: Connection) -> dict[int, dict[str, Any]]:
    return {row["job_id"]: row for row in connection.execute("SELECT * FROM loracomp.prediction")}


def reported(connection: Connection) -> list[str]:
    """Return the last status that each worker reported."""
    return [row["status"] for row in connection.execute("SELECT status FROM loracomp.worker")]


def wait_for_a_heartbeat(connection: Connection, running_job: int) -> None:
    """Wait until the worker has renewed this job's lease, and has been told which other leases are lost."""
    before = job(connection, running_job)["lease_expires_at"]
    wait_until(lambda: job(connection, running_job)["lease_expires_at"] > before)


def wait_for_a_report(connection: Connection) -> None:
    seen = "SELECT max(seen_at) FROM loracomp.worker"
    before = connection.execute(seen).fetchone()
    wait_until(lambda: connection.execute(seen).fetchone() != before)


@contextmanager
def embeddings_locked(database: str) -> Iterator[Connection]:
    with db.connect(database) as other, other.transaction():
        other.execute("LOCK TABLE loracomp.example_embedding IN ACCESS EXCLUSIVE MODE")
        yield other
