"""Whether an analyst's worst query slows the queue: claims and records with nobody reading, and with analysts at it.

    python -m benchmarks.volume.analysts [--database loracomp_volume_100000] [--seconds 20] [--rounds 3] [--analysts 2]
        [--json] [--keep docs/performance]

On the database that `python -m benchmarks.volume` filled. One worker without a model claims and records batches of 16;
analysts run the heaviest query of bi without end: once as any login would, then with what `limit_analyst` sets, on a
role made for this and dropped after. Milliseconds of a claim and of a record, and jobs a second: medians of rounds, in
each of which all three come in turn. Three and a half minutes. --keep puts the figures into analysts.json of a folder
and fills the table of scaling.md beside it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.databases import analyst, timed
from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database.connections import know_traces
from loracomp.database.embedded import database_url
from loracomp.errors import DatabaseUnavailableError
from loracomp.records import Answer, Job, Prediction, Versions
from loracomp.worker.claim import claim_jobs
from loracomp.worker.record import record_predictions

from .__main__ import ENDED, NAME
from .report import keep_analysts

WORST = "SELECT day, family, is_of_own_task, count(*), avg(similarity) FROM bi.retrieved_example_wide GROUP BY 1, 2, 3"
READER = "LORACOMP_BENCH_ANALYST"
"""Variable with the URL of a reading process, whose password a command line would show."""
NOBODY = "nobody reads"
LIMITED = "analysts, limited"
WHILE = (NOBODY, "analysts, no limits", LIMITED)
CLAIM = {"worker": "benchmark", "batch_size": 16, "lease_s": 300}
INSERT = """
INSERT INTO loracomp.job (prompt, choices, policy, tags, priority)
SELECT 'Of the benchmark.', '{yes,no}', 'default', '{"source": "analysts"}', 1000 FROM generate_series(1, %s)
"""
ANSWERED = "SELECT * FROM loracomp.prediction AS p ORDER BY job_id LIMIT 1"
TRACE = """
SELECT t AS trace FROM loracomp.prediction AS p
CROSS JOIN LATERAL jsonb_populate_record(NULL::loracomp.route_trace, to_jsonb(p)) AS t WHERE p.job_id = %s
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", default=f"{NAME}_100000")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, in turns")
    parser.add_argument("--analysts", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder of analysts.json, beside scaling.md")
    options = parser.parse_args()
    url = psycopg.conninfo.make_conninfo(database_url(load_settings()), dbname=options.database)
    with open_filled(url, options.database) as connection:
        ended = connection.execute(ENDED).fetchone()["n"]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in WHILE}
        for _ in range(options.rounds):
            for name in WHILE:
                with reading(connection, options.analysts, name):
                    found[name].append(queue(connection, options.seconds))
        connection.execute("DELETE FROM loracomp.job WHERE tags @> '{\"source\": \"analysts\"}' AND status = 'queued'")
    rows = [{"while": name, **medians(rounds)} for name, rounds in found.items()]
    if options.keep:
        given = {name: getattr(options, name) for name in ("seconds", "rounds", "analysts")}
        keep_analysts(options.keep, {"at": f"{datetime.now(UTC):%Y-%m-%d}", "jobs": ended, **given, "rows": rows})
    if options.json:
        json.dump(rows, sys.stdout, indent=2)
    else:
        Console().print(table(rows))


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(each[name] for each in rounds), 1) for name in rounds[0]}


def open_filled(url: str, name: str) -> db.Connection:
    """Open the database; exits with a sentence if it has no data that analysts could read."""
    try:
        connection = db.connect(url)
        if connection.execute(ANSWERED).fetchone():
            return connection
        missing = "it holds no predictions"
    except (DatabaseUnavailableError, psycopg.errors.UndefinedTable) as error:
        missing = str(error).partition("\n")[0]
    sys.exit(f"database {name} can't be measured: {missing}\n`make volume` makes and fills it")


@contextmanager
def reading(owner: db.Connection, analysts: int, name: str) -> Iterator[None]:
    """Within this context the load `name` (one of WHILE) is running; each analyst is a separate process."""
    if name == NOBODY:
        yield
        return
    with analyst(owner, limited=name == LIMITED) as url:
        command, environment = [sys.executable, "-m", __spec__.name, "--read"], {**os.environ, READER: url}
        readers = [subprocess.Popen(command, env=environment) for _ in range(analysts)]
        try:
            sleep(3)
            yield
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()


def read_for_ever(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            try:
                connection.execute(WORST).fetchall()
            except psycopg.errors.QueryCanceled:
                continue


def queue(connection: db.Connection, seconds: float) -> dict[str, float]:
    """Claim and record jobs for this many seconds; the queue is never empty."""
    base = connection.execute("SELECT name FROM loracomp.base_model WHERE is_default").fetchone()["name"]
    like = stored_prediction(connection)
    claims, records, jobs = [], [], 0
    end = monotonic() + seconds
    while monotonic() < end or len(claims) < 2:  # quantiles need two
        if jobs % 1600 == 0:
            connection.execute(INSERT, [1600])
        claimed: list[Job] = []
        claims.append(timed(lambda: claimed.extend(claim_jobs(connection, base_model=base, **CLAIM))))  # noqa: B023
        made = [replace(like, job_id=job.id) for job in claimed]
        records.append(timed(lambda: record_predictions(connection, claimed, made)))  # noqa: B023
        jobs += len(claimed)
    return {
        "jobs_s": round(jobs / seconds),
        **{
            f"{name}_{label}_ms": round(value, 1)
            for name, times in (("claim", claims), ("record", records))
            for label, value in zip(("p50", "p99"), quantiles(times), strict=True)
        },
    }


def stored_prediction(connection: db.Connection) -> Prediction:
    """The first prediction in the database, to record it again for other jobs."""
    know_traces(connection)
    row = connection.execute(ANSWERED).fetchone()
    trace = connection.execute(TRACE, [row["job_id"]], binary=True).fetchone()["trace"]
    answer, versions = (kind(**{each.name: row[each.name] for each in fields(kind)}) for kind in (Answer, Versions))
    return Prediction(
        row["job_id"], trace, answer, row["composition_digest"], row["batch_size"], row["timings"], versions
    )


def quantiles(times: list[float]) -> tuple[float, float]:
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("while", title="The queue beside analysts", title_justify="left")
    for column in list(rows[0])[1:]:
        shown.add_column(column.replace("_", " ").removesuffix(" ms"), justify="right")
    for row in rows:
        shown.add_row(*map(str, row.values()))
    return shown


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_for_ever(os.environ[READER])
    else:
        main()
