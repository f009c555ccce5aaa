"""Latency of one job on an idle system: from a submitter's INSERT to the visible result, beside the engine alone.

Run after `loracomp demo`: python benchmarks/latency.py [--jobs 40] [--json]. It starts a worker of its own.
"""

import argparse
import json
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import psycopg
import torch
from rich.console import Console
from rich.table import Table

from loracomp import db
from loracomp.cli.demo import _jobs
from loracomp.config import load_settings
from loracomp.embedded import database_url
from loracomp.records import Job
from loracomp.serving import load_pipeline

SUBMITTER = "loracomp_bench_submitter"
INSERT = "INSERT INTO loracomp.job (prompt, choices) VALUES (%s, %s) RETURNING id"
RESULT = "SELECT status FROM loracomp.job_result WHERE job_id = %s"


def submitter(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    with db.connect(url) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [SUBMITTER]).fetchone():
            connection.execute(f"CREATE ROLE {SUBMITTER} LOGIN IN ROLE loracomp_submitter")
    return psycopg.connect(url, user=SUBMITTER, autocommit=True)


def insert_to_visible(connection: psycopg.Connection[tuple[Any, ...]], job: dict[str, Any]) -> float:
    """Milliseconds until job_result shows the answer, asked for every two milliseconds."""
    start = time.perf_counter()
    row = connection.execute(INSERT, [job["prompt"], job["choices"]]).fetchone()
    assert row is not None
    while connection.execute(RESULT, row).fetchone() != ("succeeded",):
        time.sleep(0.002)
    return (time.perf_counter() - start) * 1000


def engine_alone(url: str) -> Callable[[dict[str, Any]], float]:
    """The same encode, route, compose and predict in this process, nothing claimed or recorded."""
    connection = db.connect(url)
    pipeline = load_pipeline(load_settings(), connection)

    def run(job: dict[str, Any]) -> float:
        given = connection.execute(
            "INSERT INTO loracomp.job (prompt, choices, run_at) VALUES (%s, %s, now() + interval '1 day') RETURNING id",
            [job["prompt"], job["choices"]],
        ).fetchone()
        assert given is not None
        start = time.perf_counter()
        pipeline.run(connection, [Job(given["id"], 0, "predict", job["prompt"], tuple(job["choices"]), None)])
        elapsed = (time.perf_counter() - start) * 1000
        connection.execute("SELECT loracomp.cancel_job(%s, 'benchmark')", [given["id"]])
        return elapsed

    return run


def summary(name: str, milliseconds: list[float]) -> dict[str, Any]:
    quantiles = statistics.quantiles(milliseconds, n=20)
    return {"what": name, "n": len(milliseconds), "p50_ms": statistics.median(milliseconds), "p95_ms": quantiles[-1]}


def measure(count: int) -> dict[str, Any]:
    url = database_url(load_settings())
    jobs = [job for job in _jobs() if job["choices"]]
    chosen = list(islice(cycle(jobs), count))
    worker = subprocess.Popen(["loracomp", "worker"], stderr=subprocess.DEVNULL)
    try:
        with submitter(url) as connection:
            for job in jobs:  # warm up: adapters resident, compositions known
                insert_to_visible(connection, job)
            whole = [insert_to_visible(connection, job) for job in chosen]
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    run = engine_alone(url)
    for job in jobs:
        run(job)
    alone = [run(job) for job in chosen]
    rows = [summary("INSERT to visible result", whole), summary("encode, route, compose, predict alone", alone)]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return {"machine": machine, "rows": rows, "ratio_p50": rows[0]["p50_ms"] / rows[1]["p50_ms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.jobs)
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        return
    table = Table("what", "n", "p50 ms", "p95 ms", title=f"One job on an idle system ({result['machine']})")
    for row in result["rows"]:
        table.add_row(row["what"], str(row["n"]), f"{row['p50_ms']:.1f}", f"{row['p95_ms']:.1f}")
    Console().print(table, f"ratio of the medians: {result['ratio_p50']:.2f}")


if __name__ == "__main__":
    main()
