"""Fills the tables of README.md and docs/ from the stored results: python -m benchmarks.figures [--check].

The tables of an evaluation come from the queries in benchmarks/evaluation/tables.sql, on a database that is dropped at
the end. The other tables come from docs/performance/*.json. The command measures nothing.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.evaluation.declared_report import declared_tables
from benchmarks.evaluation.few_labels_report import few_labels_tables
from benchmarks.evaluation.report import evaluation_tables

from .engine.report import engine_tables
from .many_adapters.report import growing
from .many_examples.report import by_size
from .pages import as_markdown, filled
from .queue.report import beside_others
from .routing import database

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with 1 if a page differs.")] = False,
) -> None:
    """Fill the pages, and print the names of the pages that changed."""
    tables = all_tables()
    changed = {page: text for page in PAGES if (text := filled(page.read_text(), tables)) != page.read_text()}
    for page, text in changed.items():
        if not check:
            page.write_text(text)
        outcome = "its tables differ from the stored results: run make figures" if check else "filled"
        print(f"{page.relative_to(ROOT)}: {outcome}")
    raise typer.Exit(check and bool(changed))


def all_tables() -> dict[str, str]:
    """Return each table by its name in the pages."""
    with database() as url:
        tables = evaluation_tables(url, ROOT)
    return {
        **tables,
        **few_labels_tables(kept("few_labels")),
        **declared_tables(kept("declared"), kept("described"), kept("certain")),
        **engine_tables(kept("engine")),
        "queue": as_markdown(beside_others(kept("queue"))),
        "many-examples": as_markdown(by_size(kept("many_examples"))),
        "many-adapters": as_markdown(growing(kept("many_adapters"))),
    }


def kept(benchmark: str) -> Any:
    """Read the results that a benchmark wrote."""
    return json.loads((ROOT / "docs" / "performance" / f"{benchmark}.json").read_text())


if __name__ == "__main__":
    typer.run(main)
