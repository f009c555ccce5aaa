"""Turns results in JSON into tables."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.pages import as_markdown

RESULTS = "engine.json"
Results = dict[str, Any]
"""For each part, when and where it was measured, its figures, and its steps."""
ORDER = (
    "scoring", "paper", "generation", "batching", "merging", "throughput", "latency", "beside", "library", "measuring",
    "labelled", "memory",
)  # fmt: skip
"""Order of the parts on the page."""


def read_results(folder: Path) -> Results:
    """Read the results that are stored in a folder, in the order of the page."""
    path = folder / RESULTS
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    return {part: found[part] for part in sorted(found, key=ORDER.index)}


def keep(folder: Path, part: str, measured: dict[str, Any]) -> None:
    """Store the results of a part, in place of its earlier ones."""
    results = read_results(folder) | {part: measured}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n")


def engine_tables(results: Results) -> dict[str, str]:
    """Return the tables of docs/figures.md by their names."""
    return {
        "engine": as_markdown(
            [
                ("what", "measured", "goal", "against", "processor, day"),
                *(
                    page_cells(figure, part)
                    for part in results.values()
                    for figure in part.get("figures", [])
                    if is_shown(figure)
                ),
            ]
        )
    }


HEADER = ("what", "measured", "goal", "against", "n", "reached")


def figures(results: Results) -> list[dict[str, Any]]:
    """Return all figures of all parts."""
    return [figure for part in results.values() for figure in part.get("figures", [])]


def cells(figure: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a figure as a row under HEADER."""
    ratio = f"{spoken(figure['ratio'])} ({spoken(figure['low'])} to {spoken(figure['high'])})"
    return (
        figure["what"],
        ratio,
        figure["goal"],
        figure["against"],
        str(figure["n"]),
        "yes" if figure["holds"] else "no",
    )


def is_shown(figure: Mapping[str, Any]) -> bool:
    """Return whether the page's table shows a figure. It shows only the strategies cat and linear, and not the memory,
    which a sentence of the page gives."""
    part, _, strategy = figure["name"].partition(" ")
    return part != "memory" and strategy not in ("ties", "magnitude_prune")


def page_cells(figure: Mapping[str, Any], part: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a figure as a row of the page, with the maker of the processor and the day on which its part was
    measured."""
    what, ratio, goal, against, _, reached = cells(figure)
    maker = part["machine"].split()[0].removesuffix("(R)")
    return what, ratio, goal if reached == "yes" else f"{goal}, missed", against, f"{maker}, {part['at'][:10]}"


def spoken(ratio: float) -> str:
    """Write a ratio with three digits or, below 0.1, as a fraction such as 1/23."""
    return f"1/{1 / ratio:.0f}" if ratio < 0.1 else f"{ratio:.3g}"


def table(results: Results) -> Table:
    """Return all figures as a table for the terminal."""
    result = Table(*HEADER, title="Ratios, median and quartiles of n turns")
    for figure in figures(results):
        result.add_row(*cells(figure), style="" if figure["holds"] else "yellow")
    return result
