"""Measures what a declaration costs an application, and how soon a row is answered.

    python -m benchmarks.answers URL [rows] [seconds]
    python -m benchmarks.answers URL real

URL is an empty database on a server of this machine that may be used for this, as superuser. Runs with and without a
declaration take turns. A backfill of `rows` rows (200,000 by default) runs behind new rows for `seconds` seconds (20 by
default). `real` measures only the time to an answer, with a worker that has the shipped library and its base model;
otherwise a made-up engine answers at once.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from job_data import add_base_model
from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.connections import Connection, rows_of
from loracomp.registry.library import load_library
from worker_helpers import running

ROUNDS = 7
TABLE = "CREATE TABLE {} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, subject text, body text)"
DECLARE = "SELECT loracomp.create_answers('{0}_answer', '{0}', 'sleep {{body}}', max_new_tokens => 1)"


def rates(connection: Connection, rows: int) -> tuple[float, float]:
    """Return the rows per second that can be inserted into a table without a declaration, and into a declared table
    while no worker runs."""
    took: dict[str, list[float]] = {"plain": [], "declared": []}
    statement = "INSERT INTO {} (body) SELECT 'a body of some length ' || i FROM generate_series(1, %s) AS i"
    for _ in range(ROUNDS):
        for table, times in took.items():
            began = time.perf_counter()
            for _ in range(300 if rows == 1 else 10):
                connection.execute(statement.format(table).encode(), [rows])
            times.append(time.perf_counter() - began)
        connection.execute("DELETE FROM loracomp.answer_hint")
    done = rows * (300 if rows == 1 else 10)
    return done / median(took["plain"]), done / median(took["declared"])


def until(connection: Connection, statement: str, number: int) -> None:
    while connection.execute(statement.encode(), [number]).fetchone() is None:
        time.sleep(0.001)


def show_latencies(connection: Connection) -> None:
    """Print the milliseconds until a submitted job and an inserted row are answered, in turns on an idle worker."""
    ways = {
        "SELECT loracomp.submit_job('sleep 0', max_new_tokens => 1) AS id":
            "SELECT output FROM loracomp.job_result WHERE job_id = %s AND output <> ''",
        "INSERT INTO declared (body) VALUES ('0') RETURNING id":
            "SELECT answer FROM declared_answer WHERE id = %s AND answer <> ''",
    }  # fmt: skip
    times: dict[str, list[float]] = {begin: [] for begin in ways}
    for _ in range(60):
        for begin, read in ways.items():
            began = time.perf_counter()
            (row,) = rows_of(connection, begin)
            until(connection, read, row["id"])
            times[begin].append(time.perf_counter() - began)
            time.sleep(0.05)
    submitted, inserted = (1000 * median(each[ROUNDS:]) for each in times.values())
    print(f"submit_job {submitted:.1f} ms, INSERT {inserted:.1f} ms, {inserted / submitted:.2f}", flush=True)


@contextmanager
def real_worker(url: str) -> Iterator[None]:
    """Run a worker that answers with the shipped library."""
    environment = {**os.environ, "LORACOMP_DATABASE_URL": url}
    with subprocess.Popen([sys.executable, "-m", "loracomp", "worker"], env=environment) as process:
        try:
            yield
        finally:
            process.terminate()


@dataclass
class Backlog:
    """Measurements during the backfill of a large table."""

    most_waiting: int = 0
    new_rows: list[float] = field(default_factory=list)
    """Seconds from the INSERT of a new row to its answer."""
    inserts: dict[str, list[float]] = field(default_factory=lambda: {"plain": [], "big": []})
    """Seconds that an INSERT of one row takes, in turns into a table without a declaration and into the declared
    one."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Memory of the worker and of the largest backend that serves it, in MB, over time."""

    def report(self, rows: int, answered: int) -> str:
        plain, declared = (1000 * quantiles(times, n=100)[98] for times in self.inserts.values())
        new, slowest = 1000 * median(self.new_rows), 1000 * max(self.new_rows)
        (worker, server), (worker_last, server_last) = self.memory[len(self.memory) // 5], self.memory[-1]
        return (
            f"{rows} rows declared, {answered} answered meanwhile: at most {self.most_waiting} jobs waited;"
            f" a new row was answered in {new:.1f} ms (at most {slowest:.0f});"
            f" INSERT p99 {plain:.2f} ms, declared {declared:.2f}, {declared / plain:.2f};"
            f" worker {worker:.0f} MB, then {worker_last:.0f};"
            f" largest backend {server:.0f} MB, then {server_last:.0f}"
        )


def backlog(connection: Connection, rows: int, seconds: float, worker: int) -> Backlog:
    """Declare a table with this many rows, and observe it for this many seconds, or until all rows are answered."""
    connection.execute(TABLE.format("big").encode())
    connection.execute("INSERT INTO big (body) SELECT '0' FROM generate_series(1, %s)", [rows])
    connection.execute("VACUUM ANALYZE big")
    connection.execute(DECLARE.format("big").encode())
    seen, end = Backlog(), time.perf_counter() + seconds
    while time.perf_counter() < end and rows_of(connection, "SELECT FROM loracomp.declaration WHERE scan <> ''"):
        (waiting,) = rows_of(connection, "SELECT count(*) AS n FROM loracomp.job WHERE status = 'queued'")
        seen.most_waiting = max(seen.most_waiting, waiting["n"])
        for _ in range(20):
            for table, times in seen.inserts.items():
                began = time.perf_counter()
                (row,) = rows_of(connection, f"INSERT INTO {table} (body) VALUES ('0') RETURNING id")
                times.append(time.perf_counter() - began)
        until(connection, "SELECT FROM big_answer WHERE id = %s AND answer <> ''", row["id"])
        seen.new_rows.append(time.perf_counter() - began)
        seen.memory.append((megabytes(worker), max(megabytes(row["pid"]) for row in rows_of(connection, BACKENDS))))
    return seen


BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def megabytes(process: int) -> float:
    """Return the process's own memory, without memory that it shares with other processes."""
    with suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024
    return 0


def main(url: str, rows: int = 200_000, seconds: int = 20, *, real: bool = False) -> None:
    schema.initialize(url)
    with db.connect(url) as connection:
        if real:
            load_library(connection, settings=load_settings())
        else:
            add_base_model(connection)
        connection.execute(TABLE.format("plain").encode())
        connection.execute(TABLE.format("declared").encode())
        connection.execute(DECLARE.format("declared").encode())
        if real:
            with real_worker(url):
                show_latencies(connection)
            return
        for each in (1, 1000):
            plain, declared = rates(connection, each)
            print(f"{each} rows a statement: {plain:.0f} rows/s, declared {declared:.0f}, {declared / plain:.2f}")
        connection.execute("TRUNCATE declared")
        connection.execute("VACUUM loracomp.answer_hint")
        with running(url, POLL_S=1, BATCH_SIZE=64) as worker:
            assert worker.stderr is not None
            threading.Thread(target=worker.stderr.read, daemon=True).start()  # otherwise its log would fill the pipe
            show_latencies(connection)
            seen = backlog(connection, rows, seconds, worker.pid)
            (answered,) = rows_of(connection, "SELECT count(*) AS n FROM loracomp.answer_row WHERE status = 'answered'")
            print(seen.report(rows, answered["n"]))


if __name__ == "__main__":
    url, *others = sys.argv[1:]
    main(url, *(int(each) for each in others if each != "real"), real="real" in others)
