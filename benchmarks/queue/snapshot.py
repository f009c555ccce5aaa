"""Measures the queue's rate with and without a reader that holds a snapshot, so that dead rows can't be removed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import mean
from typing import Any

import psycopg

from .place import Queue, queue, settle, wait_until
from .throughput import FASTEST

BATCH = 64
AHEAD_S = 10
"""The queue always holds the jobs of this many seconds (or of half the measurement) at the system's highest rate."""
STEP_S = 2.0
WRITTEN = """
SELECT sum(n_tup_ins)::bigint FROM pg_stat_all_tables WHERE coalesce(pg_partition_root(relid), relid) = %s::regclass
"""
"""A query for the number of inserted rows, from statistics, because counting the rows would take longer each minute."""


def under_a_snapshot(
    maintenance: str, pythons: dict[str, str], minutes: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return two results for each system, with one worker: without a snapshot, and with a snapshot that is held from
    start to end."""
    rows = []
    for system, python in pythons.items():
        clean = 0.0
        for held in (False, True):
            with queue(system, python, maintenance) as made:
                rates = paced(made, minutes, held)
            rate = mean(rates)
            clean = clean or rate
            say(f"{system}: {rate:.0f} jobs/s {'under a snapshot' if held else 'clean'}")
            fifth = max(1, len(rates) // 5)
            rows.append({
                "system": system, "snapshot": "held" if held else "none", "minutes": minutes, "batch": BATCH,
                "jobs_per_s": round(rate), "first_fifth": round(mean(rates[:fifth])),
                "last_fifth": round(mean(rates[-fifth:])), "of_clean": round(rate / clean, 2),
            })  # fmt: skip
    return rows


def paced(made: Queue, minutes: float, held: bool) -> list[float]:
    """Return the jobs/s that one worker recorded in each interval, while its queue is refilled so that it is never
    empty."""
    ahead = round(FASTEST[made.system] * min(AHEAD_S, (60 * minutes + STEP_S) / 2))
    made.fill(2 * ahead)
    settle(made.url)
    inserted, rates = 2 * ahead, []
    held_by = snapshot(made.url) if held else nullcontext()
    with psycopg.connect(made.url, autocommit=True) as watch, held_by, made.working(BATCH) as worker:
        wait_until(lambda: written(watch, made) > 0)
        begun = before = time.perf_counter()
        done = written(watch, made)
        while before - begun < 60 * minutes:
            if inserted - done < ahead:
                made.do("insert", ahead)
                inserted += ahead
            time.sleep(STEP_S)
            now, done_now = time.perf_counter(), written(watch, made)
            rates.append((done_now - done) / (now - before))
            before, done = now, done_now
        assert worker.poll() is None, f"{made.system}: the worker ended"
    return rates


def written(watch: psycopg.Connection, made: Queue) -> int:
    row = watch.execute(WRITTEN, (made.results,)).fetchone()
    return 0 if row is None else int(row[0])


@contextmanager
def snapshot(url: str) -> Iterator[None]:
    """Within this context, a reader holds a snapshot of the database."""
    with psycopg.connect(url, autocommit=True) as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM pg_class")
        yield
        reader.execute("ROLLBACK")
