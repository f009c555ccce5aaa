"""Measures the cost of routing: one `route_jobs` call for each batch, compared with a bare `ORDER BY embedding <=> q
LIMIT k` in one statement.

    python -m benchmarks.routing [--json] [--examples 20000] [--tasks 22] [--repeats 15]
    python -m benchmarks.routing --tasks 1000          # routing with measurements in a large library

Examples are generated clusters of unit vectors with 832 dimensions, in a database that is dropped at the end. The
database is on the server that LORACOMP_DATABASE_URL names (as a superuser, or a role that may create databases and
extensions), or else on an embedded server. Both sides take turns and use the same ef_search and binary vectors; times
are medians in milliseconds. The same jobs are also routed under a policy with weighting 'measured': all examples are
measured, each under the adapters of its own task and of the 29 nearest tasks.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import psycopg
from psycopg import sql
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database import embedded
from routing_data import Library, Vectors, add_jobs, load, queries_near, route_jobs

from .databases import create_database, timed

BARE = """
SELECT array_agg(x.example_id) FROM unnest(%b::vector[]) WITH ORDINALITY AS u (q, n)
CROSS JOIN LATERAL (SELECT example_id FROM loracomp.example_embedding ORDER BY embedding <=> u.q LIMIT 20) AS x
GROUP BY u.n
"""
MEASURED = 30
"""Maximum number of adapters under which each example is measured."""
MEASUREMENTS = """
INSERT INTO loracomp.measurement (
    example_id, base_model_id, task_id, choice_normalization, base_score, adapter_ids, gains, are_right
)
SELECT
    e.example_id, a.base_model_id, e.task_id, p.choice_normalization, -1, array_agg(a.id),
    array_agg((random() - 0.4)::real), array_agg(TRUE)
FROM unnest(%s::integer[], %s::integer[]) AS near (task_id, other)
JOIN loracomp.adapter AS a ON a.task_id = near.other
JOIN loracomp.example_embedding AS e ON e.task_id = near.task_id
JOIN loracomp.policy AS p ON p.name = 'measured'
GROUP BY e.example_id, a.base_model_id, p.name
"""
BATCHES = (1, 16, 64)
NAME = "loracomp_benchmark"


def main() -> None:
    options = parse_arguments()
    with database() as url, db.connect(url) as connection:
        counts = [options.examples // options.tasks] * options.tasks
        library = load(connection, 1, counts)
        add_measurements(connection, library)
        connection.execute("VACUUM ANALYZE")
        connection.execute("SET hnsw.ef_search = 100")
        scopes = {"all tasks": [], "one excluded": ["t0"], "one eligible": [f"t{n}" for n in range(1, options.tasks)]}
        figures = [
            {"eligible": scope, "batch": size, **measure(connection, library, excluded, size, options.repeats)}
            for scope, excluded in scopes.items()
            for size in BATCHES
        ]
    if options.json:
        json.dump(figures, sys.stdout, indent=2)
    else:
        Console().print(table(figures, len(library.vectors), options.tasks))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--tasks", type=int, default=22)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


@contextmanager
def database(shared_buffers: str = "128MB") -> Iterator[str]:
    """Create a database that is dropped at the end; yields its URL. The memory setting applies only to an embedded
    server."""
    with tempfile.TemporaryDirectory(prefix="loracomp-benchmark-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "postgres"
        given = load_settings().database_url
        try:
            server = given or start_with(folder, shared_buffers)
            yield create_database(server, NAME, replace=True)
            with psycopg.connect(server, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
        finally:
            if not given:
                embedded.stop(folder)


def start_with(folder: Path, shared_buffers: str) -> str:
    """Start an embedded server with this much shared memory, which Postgres allocates at its start; yields its URL."""
    with psycopg.connect(embedded.start(folder), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER SYSTEM SET shared_buffers = {}").format(sql.Literal(shared_buffers)))
    embedded.stop(folder)
    return embedded.start(folder)


def add_measurements(connection: db.Connection, library: Library) -> None:
    """Add measurements of each example under the adapters of its own task and of the tasks whose examples are nearest
    on average."""
    tasks = np.array(list(library.tasks))
    centres = np.stack([library.vectors[library.task_ids == task].mean(0) for task in tasks])
    nearest = tasks[np.argsort(-(centres @ centres.T), axis=1)[:, :MEASURED]]
    connection.execute(MEASUREMENTS, [np.repeat(tasks, nearest.shape[1]).tolist(), nearest.ravel().tolist()])


def measure(
    connection: db.Connection, library: Library, excluded: list[str], size: int, repeats: int
) -> dict[str, float]:
    vectors = queries_near(np.random.default_rng(2), library, size)
    jobs = add_jobs(connection, size, exclude_tasks=excluded)
    measured_jobs = add_jobs(connection, size, "measured", exclude_tasks=excluded)
    routed, measured, bare = [], [], []
    for _ in range(repeats):
        routed.append(timed(lambda: route_jobs(connection, jobs, vectors)))
        measured.append(timed(lambda: route_jobs(connection, measured_jobs, vectors)))
        bare.append(timed(lambda: ask_bare(connection, vectors)))
    found = route_jobs(connection, jobs, vectors)
    return {
        "route_jobs_ms": round(median(routed), 2),
        "bare_ms": round(median(bare), 2),
        "ratio": round(median(routed) / median(bare), 2),
        "measured_ms": round(median(measured), 2),
        "measured_ratio": round(median(measured) / median(routed), 2),
        "recall": round(recall(library, vectors, excluded, [row["example_ids"] for row in found]), 3),
    }


def ask_bare(connection: db.Connection, vectors: Vectors) -> None:
    """Search all examples for the nearest ones by a bare query, without access rights and weights."""
    connection.execute(BARE, [list(vectors)]).fetchall()


def recall(library: Library, vectors: Vectors, excluded: list[str], found: list[list[int]]) -> float:
    allowed = ~np.isin(library.task_ids, [library.id_of(task) for task in excluded])
    nearest = np.argsort(-(vectors @ library.vectors[allowed].T), axis=1)[:, :20]
    right = library.example_ids[allowed][nearest].tolist()
    return float(np.mean([len(set(mine) & set(best)) / len(best) for mine, best in zip(found, right, strict=True)]))


def table(figures: list[dict[str, float]], examples: int, tasks: int) -> Table:
    """Return a table of at most 80 columns; only the JSON has `measured_ratio`."""
    shown = Table(
        title=f"Routing, {examples:,} examples of {tasks} tasks, k = 20", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    shown.add_column("eligible", no_wrap=True)
    columns = [column for column in list(figures[0])[1:] if column != "measured_ratio"]
    for column in (*columns, "ms a job"):
        shown.add_column(column.replace("_", " "), justify="right")
    for row in figures:
        cells = (str(row[column]) for column in ("eligible", *columns))
        shown.add_row(*cells, f"{row['route_jobs_ms'] / row['batch']:.2f}")
    return shown


if __name__ == "__main__":
    main()
