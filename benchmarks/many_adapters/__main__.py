"""Measures which calls get slower with the number of active adapters: python -m benchmarks.many_adapters [--help].

It makes a database with a given number of tasks, each with an active adapter (a real file of rank 1), 10 examples and
measurements under 4 adapters, and with 1,000 answered jobs. The database is on the server that LORACOMP_DATABASE_URL
names (as superuser), or else on an embedded one, and is dropped at the end. Each task is restricted to the members of
one of three roles. It times each call, and an analyst's queries on each view of bi. It writes
docs/performance/many_adapters.json and keeps the figures there for other numbers of adapters; `make figures` shows them
in docs/scaling.md.
"""

import json
import os
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.many_examples.made_up import drop_readers
from benchmarks.pages import as_markdown
from benchmarks.routing import database
from loracomp.database import connections as db

from .calls import calls, took, views
from .filled import A_TASK, ANSWERED, fill_adapters
from .report import growing

OUT = Path(__file__).parents[2] / "docs" / "performance" / "many_adapters.json"
console = Console(stderr=True, highlight=False)


def main(
    adapters: Annotated[list[int] | None, typer.Option(help="Numbers of adapters, one after the other.")] = None,
    repeats: Annotated[int, typer.Option(help="How often each call is timed; its figure is the median.")] = 5,
    out: Annotated[Path, typer.Option(help="JSON file to add the figures to.")] = OUT,
) -> None:
    """Measure, write the figures, print them."""
    if few := [number for number in adapters or [] if number < 20]:
        raise typer.BadParameter(f"{few[0]} adapters are too few: give at least 20", param_hint="--adapters")
    figures: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for number in adapters or [100, 1000]:
        with database() as url, db.connect(url) as connection:
            figures[str(number)] = measure(connection, number, repeats)
        out.parent.mkdir(parents=True, exist_ok=True)
        figures = {key: figures[key] for key in sorted(figures, key=int)}
        out.write_text(json.dumps(figures, indent=1) + "\n")
    print(as_markdown(growing(figures)))


def measure(connection: db.Connection, adapters: int, repeats: int) -> dict[str, Any]:
    """Measure the figures for one number of adapters."""
    started = perf_counter()
    try:
        filled = fill_adapters(connection, adapters)
        console.print(f"{adapters:,} adapters: filled in {perf_counter() - started:.0f} s")
        timed = {
            name: shown(name, took(connection, call, repeats))
            for name, call in {**calls(filled), **views(connection)}.items()
        }
    finally:
        drop_readers(connection)
    return {
        "day": f"{datetime.now():%Y-%m-%d}", "load": round(os.getloadavg()[0], 1), "examples_a_task": A_TASK,
        "answered_jobs": ANSWERED, "ms": timed,
    }  # fmt: skip


def shown(name: str, milliseconds: float) -> float:
    """Return the milliseconds unchanged, and print them with the name to stderr."""
    console.print(f"{name}: {milliseconds} ms")
    return milliseconds


if __name__ == "__main__":
    typer.run(main)
