"""A database as a busy installation would hold it, and how long each view of bi takes there.

    python -m benchmarks.volume [--jobs 100000] [--weeks 8] [--part-jobs 1000000] [--database loracomp_volume_100000]
        [--replace] [--repeats 5] [--refreshes all_days a_day no_day] [--json] [--keep docs/performance]

Fills a database of its own with finished jobs, attempts, predictions and traces, on the server that
LORACOMP_DATABASE_URL names (as a superuser) or on the embedded one; the database stays, for dashboards and tries.
Where it holds jobs already, it is only measured, unless --replace drops it first. Tasks and adapters are those
registered there; in a new one they are the shipped library's, without weights, so that no worker could answer from
it.

Each view is read whole, by COPY, as an analyst with the limits of `limit_analyst`, and as one looks at it: one
evaluation, or seven days. Medians in milliseconds. Then reports are refreshed after all days have changed, after the
busiest day has, and after none. --keep puts the figures into volume.json of a folder and fills the tables of
scaling.md beside it.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.databases import analyst, create_database, timed
from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database.embedded import database_url
from loracomp.registry.library_files import MANIFEST, PACKAGED

from .report import keep, spoken

NAME = "loracomp_volume"
BLOCK = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
CHARTS = {
    "attempt": "day, outcome",
    "composed_adapter": "day, task",
    "composed_adapter_wide": "day, family",
    "prediction": "day, policy",
    "prediction_wide": "day, top_family",
    "retrieved_example": "day, task",
    "retrieved_example_wide": "day, family",
}
"""Fact views, whose rows nobody reads one by one: what is timed is a typical chart, a count by these columns."""
LIVE = {"accuracy_by_day", "jobs_by_day"}
"""Views that add the days since the last refresh to their reports."""
VIEWS = """
SELECT c.relname AS name, array_agg(a.attname::text) AS columns
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'bi'::regnamespace AND c.relkind = 'v' GROUP BY c.relname ORDER BY c.relname
"""
ENDED = "SELECT count(*) AS n FROM loracomp.job WHERE finished_at IS NOT NULL"
LATEST = "SELECT evaluation FROM bi.evaluation ORDER BY created_at DESC LIMIT 1"
SIZES = """
SELECT
    whole.relname AS name, sum(greatest(c.reltuples, 0)) FILTER (WHERE c.relkind = 'r')::bigint AS rows,
    sum(pg_total_relation_size(c.oid))::bigint AS bytes
FROM pg_class AS c JOIN pg_class AS whole ON whole.oid = coalesce(pg_partition_root(c.oid), c.oid)
WHERE whole.oid = ANY ('{loracomp.job,loracomp.prediction,loracomp.audit_event}'::regclass[])
    AND c.relkind IN ('r', 'p')
GROUP BY whole.relname ORDER BY whole.relname
"""
PART_JOBS = 1_000_000
MAINTAIN = b"SELECT loracomp.maintain()"
REFRESH = b"SELECT FROM loracomp.refresh_reports()"
CHANGED = {
    "all_days": b"UPDATE loracomp.report_day SET jobs = NULL WHERE NOT is_closed",
    "a_day": b"UPDATE loracomp.report_day SET jobs = NULL WHERE NOT is_closed AND day = ("
    b"SELECT day FROM loracomp.report_day WHERE NOT is_closed ORDER BY jobs DESC LIMIT 1)",
    "no_day": b"SELECT",
}
"""Statements that have these days computed again by the next refresh."""
log = Console(stderr=True, highlight=False)


def main() -> None:
    options = parse_arguments()
    server = database_url(load_settings())
    url = create_database(server, options.database or f"{NAME}_{options.jobs}", replace=options.replace)
    with db.connect(url) as connection:
        filled = fill(connection, options.jobs, options.weeks, options.part_jobs)
        result = {
            "jobs": connection.execute(ENDED).fetchone()["n"],
            "at": f"{datetime.now(UTC):%Y-%m-%d}",
            "filled_s": filled,
            "sizes": connection.execute(SIZES).fetchall(),
            **measure(connection, options.repeats, options.refreshes),
        }
    if options.keep:
        keep(options.keep, result)
    if options.json:
        json.dump(result, sys.stdout, indent=2, default=str)
    else:
        show(url, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000, help="finished jobs")
    parser.add_argument("--weeks", type=int, default=8, help="over which they are spread, until now")
    parser.add_argument("--part-jobs", type=int, default=PART_JOBS, help="jobs that one transaction fills in, at most")
    parser.add_argument("--database", help=f"its name on the server; {NAME}_JOBS unless given")
    parser.add_argument("--replace", action="store_true", help="drop it first")
    parser.add_argument("--repeats", type=int, default=5, help="readings of each view; 0: fill alone")
    parser.add_argument("--refreshes", nargs="*", choices=CHANGED, default=[*CHANGED], help="which are timed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder of volume.json, beside scaling.md")
    return parser.parse_args()


def fill(connection: db.Connection, jobs: int, weeks: int, part_jobs: int = PART_JOBS) -> dict[str, float] | None:
    """Fill the database; returns the seconds of each statement, or None if it already has ended jobs."""
    if connection.execute("SELECT 1 FROM loracomp.job WHERE finished_at IS NOT NULL LIMIT 1").fetchone():
        return None
    _, *parts = BLOCK.split(Path(__file__).with_name("fill.sql").read_text())
    statements = {name: body.encode() for name, body in zip(parts[::2], parts[1::2], strict=True)}
    seconds: dict[str, float] = defaultdict(float)

    def run(name: str, statement: bytes, given: dict[str, object] | None = None) -> None:
        taken = timed(partial(connection.execute, statement, given)) / 1000
        seconds[name] += taken
        log.print(f"{name}: {taken:.1f} s")

    for part in parts_of(jobs, weeks, -(-jobs // part_jobs)):
        run("ranges", MAINTAIN)
        with connection.transaction():
            for name, statement in statements.items():
                run(name, statement, part)
    run("vacuum", b"VACUUM (ANALYZE)")
    run("refresh", REFRESH)
    return {name: round(value, 2) for name, value in seconds.items()}


def parts_of(jobs: int, weeks: int, number: int) -> Iterator[dict[str, object]]:
    """What fill.sql is given for each of this number of parts of the weeks, equally long and with as many jobs.

    One transaction of ten million jobs would need much room for temporary tables, and put all answers in one partition.
    """
    whole = {"jobs": jobs, "weeks": weeks, "library": (PACKAGED / MANIFEST).read_text()}
    length = timedelta(weeks=weeks) / number
    start = datetime.now(UTC) - number * length
    for i in range(number):
        yield whole | {
            "part_jobs": jobs * (i + 1) // number - jobs * i // number,
            "since": start + i * length,
            "until": start + (i + 1) * length,
            "is_last": i == number - 1,
        }


def measure(connection: db.Connection, repeats: int, refreshes: list[str]) -> dict[str, Any]:
    """Median milliseconds to read each view, and to refresh the reports after some days have changed."""
    refresh_ms = {name: refreshed_in(connection, CHANGED[name], repeats) for name in refreshes}
    reports = {row["report"] for row in connection.execute("SELECT report FROM bi.report_refresh")}
    are_refreshed = reports - LIVE | {"routing_drift", "cost_by_submitter"}  # which rest on others
    latest = connection.execute(LATEST).fetchone() or {"evaluation": ""}
    views = connection.execute(VIEWS).fetchall() if repeats else []
    with analyst(connection) as url, db.connect(url) as reader:
        for view in views:
            columns = view.pop("columns")
            query = question(view["name"])
            is_refreshed = view["name"] in are_refreshed
            view |= {"query": query, "is_refreshed": is_refreshed, "ms": took(reader, query, repeats)}
            if condition := narrow(view["name"], columns, latest["evaluation"]):
                query = question(view["name"], condition)
                view |= {"narrow_query": query, "narrow_ms": took(reader, query, repeats)}
    return {"views": views, "refresh_ms": refresh_ms}


def refreshed_in(connection: db.Connection, changed: bytes, repeats: int) -> float:
    """Median milliseconds of a refresh after this statement."""
    times = []
    for _ in range(max(1, repeats)):
        connection.execute(changed)
        times.append(timed(partial(connection.execute, REFRESH)))
    return round(median(times), 1)


def question(view: str, condition: str = "true") -> str:
    columns = CHARTS.get(view)
    if columns is None:
        return f"SELECT * FROM bi.{view} WHERE {condition}"
    return f"SELECT {columns}, count(*) FROM bi.{view} WHERE {condition} GROUP BY {columns}"


def narrow(view: str, columns: list[str], evaluation: str) -> str | None:
    """The condition of a typical query on a view: the latest evaluation, or the last seven days, or None."""
    if "evaluation" in columns and view not in CHARTS:
        return f"evaluation = '{evaluation}'"
    if "day" in columns and view != "dim_date":
        return "day > (now() AT TIME ZONE 'UTC')::date - 7"
    return None


def took(connection: db.Connection, query: str, repeats: int) -> float | None:
    """Median milliseconds of a query, or None if it took longer than an analyst may."""
    try:
        return round(median(timed(partial(read, connection, query)) for _ in range(repeats)), 1)
    except psycopg.errors.QueryCanceled:
        return None


def read(connection: db.Connection, query: str) -> int:
    """Run a query by COPY; returns the bytes of its result."""
    with connection.cursor().copy(f"COPY ({query}) TO STDOUT".encode()) as copy:
        return sum(len(part) for part in copy)


def show(url: str, result: dict[str, Any]) -> None:
    console = Console()
    sizes = ", ".join(f"{row['name']} {row['rows']:,} rows, {row['bytes'] / 2**20:,.0f} MB" for row in result["sizes"])
    console.print(sizes)
    table = Table(title="Reading bi as an analyst", title_justify="left")
    for name in ("view", "read"):
        table.add_column(name, no_wrap=name == "view")
    table.add_column("ms", justify="right")
    table.add_column("one evaluation, or 7 days", justify="right")
    table.add_column("refreshed")
    for view in result["views"]:
        asked = f"count by {CHARTS[view['name']]}" if view["name"] in CHARTS else "whole"
        times = (spoken(view, "ms"), spoken(view, "narrow_ms"))
        table.add_row(view["name"], asked, *times, "refreshed" if view["is_refreshed"] else "live")
    console.print(table)
    for name, milliseconds in result["refresh_ms"].items():
        console.print(f"reports refreshed where {name.replace('_', ' ')} changed: {milliseconds:,.1f} ms")
    console.print(f"The database: {url}", soft_wrap=True)


if __name__ == "__main__":
    main()
