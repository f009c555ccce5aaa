"""The benchmark's own server, a database for each measurement, and the worker processes."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from loracomp.database import embedded

from .costs import Counters

ROOT = Path(__file__).parents[2]
SETTLE_S = float(os.environ.get("SETTLE_S", "120"))
RESULTS = {"loracomp": "loracomp.prediction"}
COMMIT = "SELECT pg_logical_emit_message(true, 'probe', '')"
"""A statement whose transaction has almost nothing to commit."""
BACKENDS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
)
BYTES = """
SELECT
    (
        SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c
        WHERE c.relkind IN ('r', 'p') AND coalesce(pg_partition_root(c.oid), c.oid) = '{table}'::regclass
    ) / count(*)
FROM {table}
"""
"""A query for the bytes per row of a table with all its partitions."""
_numbers = count()


@contextmanager
def own_server() -> Iterator[str]:
    """Start an embedded server with Postgres's default settings, fsync included; yields its URL."""
    with tempfile.TemporaryDirectory(prefix="loracomp-queue-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "postgres"
        yield embedded.start(data)
        embedded.stop(data)


@dataclass(frozen=True)
class Queue:
    """One of the compared systems, in its own database."""

    system: str
    python: str
    url: str

    @property
    def results(self) -> str:
        return RESULTS.get(self.system, "result")

    def call(self, verb: str, *arguments: object) -> "subprocess.Popen[bytes]":
        command = [self.python, "-m", f"benchmarks.queue.systems.{self.system}", verb, self.url, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)

    def do(self, verb: str, *arguments: object) -> None:
        if self.call(verb, *arguments).wait():
            raise SystemExit(f"{self.system}: {verb} failed")

    def fill(self, jobs: int) -> None:
        """Insert this many jobs."""
        self.do("insert", jobs)
        one(self.url, "VACUUM ANALYZE", rows=False)

    @contextmanager
    def working(self, batch: int) -> "Iterator[subprocess.Popen[bytes]]":
        """Within this context a worker runs."""
        worker = self.call("work", batch)
        try:
            yield worker
        finally:
            worker.kill()
            worker.wait()

    def bytes_a_result(self) -> float:
        """Return the bytes of a result in its table, with its share of indexes and TOAST."""
        return float(one(self.url, BYTES.format(table=self.results)))

    def measured(self, jobs: int, batch: int, workers: int, seconds: float) -> dict[str, float]:
        """Return the jobs/s that this many workers recorded after their start-up, and the costs of a job. `jobs` is the
        number of jobs that are queued beforehand.
        """
        self.fill(jobs)
        settle(self.url)
        with psycopg.connect(self.url) as watch:

            def look(statement: str) -> tuple[Any, ...]:
                # Roll back, so that these queries add no commits.
                row = watch.execute(statement.encode()).fetchone()
                watch.rollback()
                assert row is not None
                return row

            def recorded() -> int:
                return int(look(f"SELECT count(*) FROM {self.results}")[0])

            before = Counters.now(look, 0, [])
            with ExitStack() as stack:
                pids = [stack.enter_context(self.working(batch)).pid for _ in range(workers)]
                wait_until(lambda: recorded() > 0)
                time.sleep(1)
                started = time.perf_counter()
                first = Counters.now(look, recorded(), pids)
                time.sleep(seconds)
                last, ended = Counters.now(look, recorded(), pids), time.perf_counter()
            if last.jobs >= jobs:
                raise SystemExit(f"{self.system}: {jobs} jobs were done too soon to be measured")
            wait_until(lambda: look(BACKENDS) == (1,))
            all_ = Counters.now(look, recorded(), [])
        return {
            "jobs_per_s": (last.jobs - first.jobs) / (ended - started),
            **last.costs_since(first),
            "commits_a_job": round((all_.commits - before.commits) / all_.jobs, 3),
        }


def install(system: str, python: str, maintenance: str) -> None:
    """Make a template database for a system."""
    name = f"{system}_template"
    one(maintenance, f"CREATE DATABASE {name} TEMPLATE template0", rows=False)
    Queue(system, python, url_of(maintenance, name)).do("install")


@contextmanager
def queue(system: str, python: str, maintenance: str) -> Iterator[Queue]:
    """Make an empty queue in a new database, which is dropped afterwards."""
    name = f"{system}_{next(_numbers)}"
    one(maintenance, f"CREATE DATABASE {name} TEMPLATE {system}_template", rows=False)
    yield Queue(system, python, url_of(maintenance, name))
    one(maintenance, f"DROP DATABASE {name} WITH (FORCE)", rows=False)


def url_of(maintenance: str, database: str) -> str:
    """Return the address of a database as a URL, because asyncpg reads no other form."""
    parameters = conninfo_to_dict(maintenance)
    return f"postgresql://{parameters['user']}@/{database}?host={parameters['host']}&port={parameters['port']}"


def one(url: str, statement: str, *, rows: bool = True) -> Any:
    """Run a statement; returns the only column of its only row, or None."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if rows else None
    return None if row is None else row[0]


def settle(url: str) -> None:
    """Wait (at most two minutes) until the disk has written earlier data, because commits are slower until then.

    Virtual disks go on writing after a checkpoint. The disk has finished when, within a second, at most a tenth of the
    commits take twice as long as the median.
    """
    one(url, "CHECKPOINT", rows=False)
    with suppress(AssertionError), psycopg.connect(url, autocommit=True) as connection:
        wait_until(lambda: _commits_are_even(connection), SETTLE_S)


def _commits_are_even(connection: psycopg.Connection) -> bool:
    spent = []
    for _ in range(100):
        started = time.perf_counter()
        connection.execute(COMMIT)
        spent.append(time.perf_counter() - started)
        time.sleep(0.01)
    *_, ninetieth = quantiles(spent, n=10)
    return ninetieth < 2 * median(spent)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened within {seconds:g} s"
        time.sleep(0.02)
