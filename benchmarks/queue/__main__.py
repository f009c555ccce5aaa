"""The queue by itself, beside two libraries and a bare table: python -m benchmarks.queue [--help].

A model that does nothing, the whole trace written, on an embedded server of its own. procrastinate and pgqueuer do a
job with an equally large result. Some ten minutes on two quiet cores; writes docs/performance/queue.json.
"""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from .growth import growth, inserts
from .place import one, own_server
from .throughput import POINTS, throughput

OUT = Path(__file__).parents[2] / "docs" / "performance" / "queue.json"
console = Console(stderr=True, highlight=False)


def main(  # noqa: PLR0917
    depth: Annotated[int, typer.Option(help="Jobs in the deepest queue.")] = 100_000,
    history: Annotated[int, typer.Option(help="Jobs in the longest history.")] = 100_000,
    seconds: Annotated[float, typer.Option(help="That each point is measured for.")] = 3,
    rounds: Annotated[int, typer.Option(help="At the point where systems are compared.")] = 3,
    python: Annotated[str, typer.Option(help="A Python that has procrastinate and pgqueuer.")] = sys.executable,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = OUT,
) -> None:
    """Measure, write the figures, print them."""

    def say(line: str) -> None:
        console.print(f"[dim]{line}[/dim]")

    pythons = {system: python if system in ("procrastinate", "pgqueuer") else sys.executable for system in POINTS}
    with own_server() as url:
        figures: dict[str, Any] = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "server": one(url, "SHOW server_version"),
            "psycopg": psycopg.__version__,
            "throughput": throughput(url, pythons, seconds, rounds, say),
            "growth": growth(url, sys.executable, steps(depth), [0, *steps(history)], say),
            "inserts": inserts(url, sys.executable, seconds),
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    for name in ("throughput", "growth", "inserts"):
        Console().print(as_table(name, figures[name]))


def steps(largest: int) -> list[int]:
    """Up to the largest, each ten times the one before."""
    return [largest // 100, largest // 10, largest]


def as_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    typer.run(main)
