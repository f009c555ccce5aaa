"""Compares the queue alone with five other queues and a bare table: python -m benchmarks.queue [--help].

The worker uses a model that does nothing, but writes the whole trace. The database is on an embedded server of the
benchmark's own. procrastinate, pgqueuer, awa, pgmq and PgQ run jobs with a result of the same size, if their packages
are installed. The command takes half an hour on two quiet cores. It writes docs/performance/queue.json, where the
figures of parts that it does not measure stay as they are; `make figures` shows them in docs/figures.md.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from .place import install, one, own_server
from .snapshot import under_a_snapshot
from .submitters import submitters
from .systems.pgq import SQL as PGQ
from .throughput import throughput

OUT = Path(__file__).parents[2] / "docs" / "performance" / "queue.json"
PACKAGES = {"pgqueuer": "pgqueuer", "procrastinate": "procrastinate", "awa": "awa-pg", "pgmq": "pgmq"}
"""For each module of another queue, its package on PyPI."""
console = Console(stderr=True, highlight=False)


class Part(StrEnum):
    """A part of the benchmark, which can be measured alone."""

    THROUGHPUT = "throughput"
    SUBMITTERS = "submitters"
    SNAPSHOT = "snapshot"


def main(  # noqa: PLR0917
    part: Annotated[list[Part] | None, typer.Option(help="Parts to measure. Defaults to all.")] = None,
    depth: Annotated[int, typer.Option(help="Jobs in the queue that submitters share.")] = 100_000,
    seconds: Annotated[float, typer.Option(help="Seconds for which each point is measured.")] = 3,
    rounds: Annotated[int, typer.Option(help="Rounds of part throughput: one worker, batches of 64 and of one.")] = 5,
    claims: Annotated[int, typer.Option(help="Claims for each number of submitters.")] = 500,
    minutes: Annotated[
        float, typer.Option(help="Minutes with a reader that holds a snapshot, and the same number without.")
    ] = 0.5,
    python: Annotated[
        str, typer.Option(help="A Python that has procrastinate, pgqueuer, awa-pg and pgmq.")
    ] = sys.executable,
    out: Annotated[Path, typer.Option(help="JSON file to write the figures into.")] = OUT,
) -> None:
    """Measure, write the figures, print them."""

    def say(line: str) -> None:
        console.print(f"[dim]{line}[/dim]")

    pythons = {"loracomp": sys.executable, "bare": sys.executable}
    pythons |= {system: python for system in PACKAGES if has(python, system)}
    pythons |= {"pgq": sys.executable} if PGQ.is_file() else {}
    figures: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    with own_server() as url:
        measures: dict[Part, Callable[[], list[dict[str, Any]]]] = {
            Part.THROUGHPUT: lambda: throughput(url, pythons, seconds, rounds, say),
            Part.SUBMITTERS: lambda: submitters(url, depth, claims, say),
            Part.SNAPSHOT: lambda: under_a_snapshot(url, pythons, minutes, say),
        }
        machine = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "server": one(url, "SHOW server_version"),
            "psycopg": psycopg.__version__,
            **{system: version(python, PACKAGES[system]) for system in PACKAGES if system in pythons},
        }
        for system, interpreter in pythons.items():
            install(system, interpreter, url)
        for name in part or list(Part):
            rows = measures[name]()
            figures[name] = {"day": f"{datetime.now():%Y-%m-%d}", **machine, "rows": rows}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(figures, indent=1) + "\n")
            Console().print(as_table(name, rows))


def has(python: str, package: str) -> bool:
    """Return whether this Python can import the package."""
    return not subprocess.run([python, "-c", f"import {package}"], check=False, stderr=subprocess.DEVNULL).returncode


def version(python: str, package: str) -> str:
    """Return the version of a package that is installed for this Python."""
    ask = f"from importlib.metadata import version; print(version('{package}'))"
    return subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def as_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    typer.run(main)
