"""Makes a database like that of a busy installation, for dashboards, for experiments, and for timing the views of bi.

    python -m benchmarks.volume [--jobs 100000] [--weeks 8] [--part-jobs 1000000] [--database loracomp_volume_100000]
        [--replace]

It fills a separate database with finished jobs, attempts, predictions and traces, on the server that
LORACOMP_DATABASE_URL names (as a superuser) or on the embedded one. A database that already has jobs is not changed,
unless --replace drops it first. The jobs use the tasks and adapters that are registered in the database. A new database
gets the tasks and adapters of the shipped library, without weights, so that no worker could answer from it.
"""

import argparse
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.databases import create_database, timed
from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database.embedded import database_url
from loracomp.registry.library_files import MANIFEST, packaged

NAME = "loracomp_volume"
BLOCK = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
PART_JOBS = 1_000_000
MAKE_PARTITIONS = b"SELECT loracomp.make_partitions()"
REFRESH = b"SELECT FROM loracomp.refresh_reports()"
log = Console(stderr=True, highlight=False)


def main() -> None:
    options = parse_arguments()
    server = database_url(load_settings())
    url = create_database(server, options.database or f"{NAME}_{options.jobs}", replace=options.replace)
    with db.connect(url) as connection:
        fill(connection, options.jobs, options.weeks, options.part_jobs)
    print(url)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000, help="finished jobs")
    parser.add_argument("--weeks", type=int, default=8, help="over which they are spread, until now")
    parser.add_argument("--part-jobs", type=int, default=PART_JOBS, help="jobs that one transaction fills in, at most")
    parser.add_argument("--database", help=f"its name on the server; {NAME}_JOBS unless given")
    parser.add_argument("--replace", action="store_true", help="drop it first")
    return parser.parse_args()


def fill(connection: db.Connection, jobs: int, weeks: int, part_jobs: int = PART_JOBS) -> None:
    """Fill the database, unless it already has ended jobs."""
    if connection.execute("SELECT 1 FROM loracomp.job WHERE finished_at IS NOT NULL LIMIT 1").fetchone():
        return
    _, *parts = BLOCK.split(Path(__file__).with_name("fill.sql").read_text())
    statements = {name: body.encode() for name, body in zip(parts[::2], parts[1::2], strict=True)}

    def run(name: str, statement: bytes, given: dict[str, object] | None = None) -> None:
        log.print(f"{name}: {timed(partial(connection.execute, statement, given)) / 1000:.1f} s")

    for part in parts_of(jobs, weeks, -(-jobs // part_jobs)):
        run("ranges", MAKE_PARTITIONS)
        with connection.transaction():
            for name, statement in statements.items():
                run(name, statement, part)
    run("vacuum", b"VACUUM (ANALYZE)")
    run("refresh", REFRESH)


def parts_of(jobs: int, weeks: int, number: int) -> Iterator[dict[str, object]]:
    """Return the arguments of fill.sql for each part. The weeks are divided into this number of parts of equal length,
    with equal numbers of jobs, because one transaction of ten million jobs would need much room for temporary tables,
    and would put all answers in one partition.
    """
    whole = {"jobs": jobs, "weeks": weeks, "library": (packaged() / MANIFEST).read_text()}
    length = timedelta(weeks=weeks) / number
    start = datetime.now(UTC) - number * length
    for i in range(number):
        yield whole | {
            "part_jobs": jobs * (i + 1) // number - jobs * i // number,
            "since": start + i * length,
            "until": start + (i + 1) * length,
            "is_last": i == number - 1,
        }


if __name__ == "__main__":
    main()
