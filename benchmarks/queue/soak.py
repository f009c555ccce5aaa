"""Measures whether the queue stays as it is: many jobs through a short queue, while nobody calls VACUUM."""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from subprocess import Popen
from time import perf_counter
from typing import Any

from loracomp.database import connections as db

from .costs import POSTMASTER
from .growth import Probe
from .place import queue, settle
from .systems.command import PROMPT

DEPTH = 10_000
"""Jobs that wait at most; the queue is filled up when half of them are left."""
KEPT = 20_000
"""Jobs that have been taken and not yet purged, at most; then half of them are purged."""
PROBED = 5
"""Claims of the probe between two looks at the queue, which the worker empties meanwhile."""
INSERT = "INSERT INTO loracomp.job (prompt) SELECT %s FROM generate_series(1, %s)"
WAITING = "SELECT count(*) AS n FROM loracomp.job WHERE status = 'queued'"
PURGE = "SELECT loracomp.purge_jobs('0', %s, force => true) AS n"
SIZES = """
SELECT sum(n_dead_tup)::bigint AS dead_rows, sum(pg_table_size(relid))::bigint AS tables,
    sum(pg_indexes_size(relid))::bigint AS indexes
FROM pg_stat_all_tables WHERE schemaname IN ('loracomp', 'loracomp_parts')
"""


def soak(maintenance: str, jobs: int, batch: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each tenth of the jobs: rate, milliseconds of a claim, and what has piled up at its end.

    One worker takes batches of `batch`. Meanwhile a probe claims and records 16 jobs at a time; its claims are timed.
    """
    with queue("loracomp", sys.executable, maintenance) as made, db.connect(made.url) as connection:
        source = Source(connection)
        source.fill_up()
        settle(maintenance)
        with made.working(batch) as worker:
            source.give(DEPTH)  # not measured: until worker and probe have prepared their statements
            return [tenth(source, number, jobs // 10, worker, say) for number in range(1, 11)]


class Source:
    """Keeps the queue short but never empty, and ended jobs few. Its probe claims while the worker does."""

    def __init__(self, connection: db.Connection) -> None:
        self.connection = connection
        self.probe = Probe(DEPTH, 0, 1, connection)
        self.inserted = self.taken = self.purged = 0

    def fill_up(self) -> None:
        """Count the jobs that workers have taken, and insert as many if the queue is half empty."""
        waiting = self._number(WAITING)
        self.taken = self.inserted - waiting
        if waiting <= DEPTH / 2:
            self.connection.execute(INSERT, [PROMPT, DEPTH - waiting])
            self.inserted += DEPTH - waiting

    def give(self, jobs: int) -> None:
        """Go on until workers have taken so many more jobs."""
        until = self.taken + jobs
        while self.taken < until:
            self.fill_up()
            self.probe.measure(PROBED)
            if self.taken - self.purged > KEPT:
                self.purged += self._number(PURGE, KEPT // 2)

    def _number(self, statement: str, *values: int) -> int:
        row = self.connection.execute(statement, values).fetchone()
        assert row
        return int(row["n"])


def tenth(source: Source, number: int, jobs: int, worker: "Popen[bytes]", say: Callable[[str], None]) -> dict[str, Any]:
    claims, before, begun = len(source.probe.claimed), source.taken, perf_counter()
    source.give(jobs)
    assert worker.poll() is None, "the worker ended"
    rate = (source.taken - before) / (perf_counter() - begun)
    claimed = source.probe.claimed[claims:]
    sizes = source.connection.execute(SIZES).fetchone()
    assert sizes
    say(f"{number} of 10: {rate:.0f} jobs/s")
    return {
        "jobs": source.taken - DEPTH, "jobs_per_s": round(rate),
        "claim_p50_ms": round(median(claimed), 2), "claim_p99_ms": round(quantiles(claimed, n=100)[-1], 2),
        "dead_rows": sizes["dead_rows"],
        "tables_mb": round(sizes["tables"] / 1e6), "indexes_mb": round(sizes["indexes"] / 1e6, 1),
        "worker_mb": round(private_mb(worker.pid)), "server_mb": round(server_mb(source.connection)),
    }  # fmt: skip


def server_mb(connection: db.Connection) -> float:
    """Memory of the server's processes, without what they share."""
    row = connection.execute(f"{POSTMASTER} AS pid").fetchone()
    assert row
    children = Path(f"/proc/{row['pid']}/task/{row['pid']}/children").read_text(encoding="ascii")
    return sum(private_mb(int(pid)) for pid in [row["pid"], *children.split()])


def private_mb(pid: int) -> float:
    """Memory of a process that it shares with no other; 0 if the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return 0.0
    return int(status.partition("RssAnon:")[2].split()[0]) / 1000
