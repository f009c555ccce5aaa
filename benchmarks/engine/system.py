"""Compares the whole system, a worker process with its queue, with the same engine in a loop in this process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg.types.json import Jsonb

from benchmarks.databases import batches
from loracomp.database import connections as db
from loracomp.engine.inflight import InFlight
from loracomp.errors import LoracompError
from loracomp.records import Failure

from .paper import waiting
from .timing import Measured, Seconds, compare, milliseconds, over, per_second, take_turns
from .workbench import Workbench, made_up_jobs

WORKER = [sys.executable, "-c", "from loracomp.cli import main; main()", "worker"]
PATIENCE_S = 120
INSERT = """
INSERT INTO loracomp.job (prompt, choices)
SELECT j.prompt, j.choices FROM jsonb_to_recordset(%s) AS j (prompt text, choices text[]) RETURNING id
"""
RESULTS = """
SELECT count(*) FILTER (WHERE r.status = 'succeeded') AS succeeded, count(r.finished_at) AS finished
FROM loracomp.job_result AS r WHERE r.job_id = ANY (%s)
"""
STEPS = """
SELECT t.key AS step, percentile_cont(0.5) WITHIN GROUP (ORDER BY t.value::float8) AS ms
FROM loracomp.prediction AS p CROSS JOIN LATERAL jsonb_each_text(p.timings - 'share') AS t
WHERE p.job_id = ANY (%s) GROUP BY t.key
"""
ORDER = ("claim", "encode", "route", "load", "ready", "compose", "calibrate", "predict", "record")


class Submitter:
    """Inserts jobs for a worker process and reads their results, with a submitter's rights."""

    def __init__(self, connection: db.Connection, worker: subprocess.Popen[bytes]) -> None:
        self._connection = connection
        self._worker = worker

    def ask(self, jobs: Sequence[dict[str, Any]], every_s: float) -> list[int]:
        """Insert jobs, poll every `every_s` seconds until all results are visible, and return the jobs' ids.

        Raises LoracompError if jobs fail, if the worker ends, or after two minutes.
        """
        ids = [row["id"] for row in self._connection.execute(INSERT, [Jsonb(jobs)])]
        deadline = time.monotonic() + PATIENCE_S
        while (seen := self._seen(ids))["finished"] < len(jobs):
            if self._worker.poll() is not None or time.monotonic() > deadline:
                raise LoracompError(
                    f"{len(jobs) - seen['finished']} jobs are not answered; the worker's exit code: "
                    f"{self._worker.poll()} (None: it runs); `loracomp worker` on this database says why"
                )
            time.sleep(every_s)
        if seen["succeeded"] < len(jobs):
            raise LoracompError(f"{len(jobs) - seen['succeeded']} of {len(jobs)} jobs failed: see loracomp.job_result")
        return ids

    def one(self, statement: str, *arguments: object) -> Any:
        """Run a statement as the submitter; returns its value."""
        row = self._connection.execute(statement.encode(), arguments).fetchone()
        assert row is not None
        (value,) = row.values()
        return value

    def _seen(self, ids: Sequence[int]) -> dict[str, Any]:
        row = self._connection.execute(RESULTS, [ids]).fetchone()
        assert row is not None
        return row


@contextmanager
def working(bench: Workbench, batch_size: int) -> Iterator[Submitter]:
    """Within this context a worker process is running; it has already answered a first batch."""
    url = bench.settings.database_url
    assert url
    environment = {**os.environ, "LORACOMP_DATABASE_URL": url, "LORACOMP_BATCH_SIZE": str(batch_size)}
    process = subprocess.Popen(WORKER, env=environment, stderr=subprocess.DEVNULL)
    try:
        with db.connect(url) as connection:
            connection.execute("SET ROLE loracomp_submitter")
            submitter = Submitter(connection, process)
            submitter.ask(made_up_jobs(batch_size, seed=5), 0.05)
            yield submitter
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Alone:
    """The worker's engine without a queue: encodes, composes and answers jobs in this process; routes are given."""

    def __init__(self, bench: Workbench, jobs: Sequence[dict[str, Any]], batch_size: int) -> None:
        self._engine = bench.engine
        self._batches = [
            [InFlight(job) for job in batch] for batch in batches(waiting(bench, jobs, "default"), batch_size)
        ]
        for batch in self._batches:
            bench.engine.prepare(bench.connection, batch)

    def run(self) -> None:
        for batch in self._batches:
            self._engine.encoder.encode([(each.job.prompt, each.job.choices) for each in batch])
            self._engine.answer(batch)
            assert not any(isinstance(each.result, Failure) for each in batch)


def throughput(bench: Workbench, turns: int) -> Measured:
    """Compare many jobs, from INSERT until the last result is visible, with the engine in a loop; also times steps."""
    jobs = [made_up_jobs(bench.sizes.queue, seed=200 + turn) for turn in range(turns + 1)]
    seconds, steps = against_engine(bench, jobs, bench.sizes.batch, 0.1)
    what = f"whole system, INSERT to recorded, {bench.sizes.queue} jobs at once: jobs/s"
    found = over(seconds, "engine", "whole system")
    against = "our engine in a loop"
    figure = compare(
        "throughput", what, against, ">= 0.9", ratios=found, details=per_second(seconds, bench.sizes.queue)
    )
    return {"figures": [figure], "steps": steps}


def latency(bench: Workbench, turns: int) -> Measured:
    """Compare one job on an idle system, from INSERT to result, with only encoding and answering; also times steps."""
    jobs = [made_up_jobs(1, seed=300 + turn) for turn in range(turns + 1)]
    seconds, steps = against_engine(bench, jobs, 1, 0.01)
    what = "whole system, one job: time"
    found = over(seconds, "whole system", "engine")
    figure = compare("latency", what, "encode + forward alone", "<= 1.3", ratios=found, details=milliseconds(seconds))
    return {"figures": [figure], "steps": steps}


def against_engine(
    bench: Workbench, jobs: Sequence[Sequence[dict[str, Any]]], batch_size: int, every_s: float
) -> tuple[Seconds, dict[str, float]]:
    """Return how many seconds a worker took and how many the engine alone took, and the times of the worker's steps.

    The worker's results are polled every `every_s` seconds. The engine gets batches of `batch_size`. `jobs` has a list
    of jobs for each turn.
    """
    engines = [Alone(bench, each, batch_size) for each in jobs]
    ids: list[int] = []
    with working(bench, bench.sizes.batch) as submitter:
        runs: dict[str, Callable[[int], object]] = {
            "whole system": lambda turn: ids.extend(submitter.ask(jobs[turn], every_s)),
            "engine": lambda turn: engines[turn].run(),
        }
        seconds = take_turns(runs, len(jobs) - 1)
    return seconds, steps_of(bench, ids)


def steps_of(bench: Workbench, ids: Sequence[int]) -> dict[str, float]:
    """Return the median milliseconds of each step over these jobs, in the order of the steps."""
    rows = bench.connection.execute(STEPS, [ids]).fetchall()
    return {row["step"]: round(row["ms"], 2) for row in sorted(rows, key=lambda row: ORDER.index(row["step"]))}
