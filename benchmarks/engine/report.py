"""Turns results in JSON into the tables and the plot of docs/performance.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.evaluation.report import as_markdown, copy_tables

RESULTS = "engine.json"
Results = dict[str, Any]
"""For each part: when and where it was measured, its figures, and its steps or curves."""
ORDER = (
    "scoring", "paper", "generation", "batching", "merging", "throughput", "latency", "beside", "library", "measuring",
    "memory", "growth", "composing", "ways", "profile",
)  # fmt: skip
"""Order of the parts on the page."""


def read_results(folder: Path) -> Results:
    """The results that are stored in a folder, in the order of the page."""
    path = folder / RESULTS
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    return {part: found[part] for part in sorted(found, key=ORDER.index)}


def keep(folder: Path, part: str, measured: dict[str, Any]) -> None:
    """Store the results of a part, in place of its earlier ones."""
    results = read_results(folder) | {part: measured}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n")


def write_report(folder: Path) -> Results:
    """Draw the plot, and fill the tables of docs/performance.md if it is next to the folder."""
    folder = folder.resolve()
    results = read_results(folder)
    tables = {
        "performance": as_markdown([HEADER, *map(cells, figures(results))]),
        "machines": as_markdown(machines(results)),
        "memory": as_markdown(memory(results)),
        "composing": as_markdown(composing(results)),
        "steps": as_markdown(steps(results)),
        "profile": as_markdown(profile(results)),
        "ways": as_markdown(ways(results)),
    }
    page = folder.parent / f"{folder.name}.md"
    if page.is_file():
        copy_tables(page, tables)
    if "growth" in results:
        from .plots import draw_growth  # noqa: PLC0415  matplotlib takes a second to import

        draw_growth(results["growth"], folder / "growth.svg")
    return results


HEADER = ("what", "measured", "goal", "against", "n", "reached")


def figures(results: Results) -> list[dict[str, Any]]:
    """All figures of all parts."""
    return [figure for part in results.values() for figure in part.get("figures", [])]


def cells(figure: Mapping[str, Any]) -> tuple[str, ...]:
    """A figure as a row under HEADER."""
    ratio = f"{spoken(figure['ratio'])} ({spoken(figure['low'])} to {spoken(figure['high'])})"
    return (
        figure["what"],
        ratio,
        figure["goal"],
        figure["against"],
        str(figure["n"]),
        "yes" if figure["holds"] else "no",
    )


def spoken(ratio: float) -> str:
    """A ratio with three digits; below 0.2 as a fraction such as 1/23."""
    return f"1/{1 / ratio:.0f}" if ratio < 0.2 else f"{ratio:.3g}"


def machines(results: Results) -> list[Sequence[str]]:
    """Table rows that say which parts were measured on which machine, and when."""
    parts: dict[tuple[str, ...], list[str]] = {}
    for name, part in results.items():
        parts.setdefault((part["machine"], part["base_model"], part["versions"], part["at"][:10]), []).append(name)
    return [
        ("parts", "machine", "base model", "versions", "day"),
        *((", ".join(each), *on) for on, each in parts.items()),
    ]


def memory(results: Results) -> list[Sequence[str]]:
    """Table of the bytes held for a batch's mixes divided by those of its adapters, with a row for each strategy."""
    return by_strategy(results.get("memory", {}).get("held", {}), decimals=2)


def composing(results: Results) -> list[Sequence[str]]:
    """Table of the milliseconds to compose a batch, with a row for each strategy."""
    return by_strategy(results.get("composing", {}).get("composing", {}), decimals=1)


def by_strategy(found: Mapping[str, Mapping[str, float]], decimals: int) -> list[Sequence[str]]:
    """Table with a row of numbers for each strategy."""
    rows = ((strategy, *(f"{each:.{decimals}f}" for each in row.values())) for strategy, row in found.items())
    return [("strategy", *next(iter(found.values()), {})), *rows]


def steps(results: Results) -> list[Sequence[str]]:
    """Table of the milliseconds of a batch's steps, with a column for each part that ran a worker."""
    parts = {name: part["steps"] for name, part in results.items() if "steps" in part}
    names = {step: None for each in parts.values() for step in each}
    return [("step", *parts), *((step, *(f"{each[step]:.1f}" for each in parts.values())) for step in names)]


def profile(results: Results) -> list[Sequence[str]]:
    """Table of the milliseconds of a batch by kind of operation, with a column for each run."""
    runs = results.get("profile", {}).get("profile", {})
    kinds = next(iter(runs.values()), {})
    return [("", *runs), *((kind, *(f"{each[kind]:.0f}" for each in runs.values())) for kind in kinds)]


def ways(results: Results) -> list[Sequence[str]]:
    """Table of the number of adapters at which shared and own factors cost the same: measured, and by our rule."""
    found: list[dict[str, Any]] = results.get("ways", {}).get("ways", [])
    kinds = {f"{each['strategy']}, rank {each['rank']}": None for each in found}
    widths: dict[int, list[str]] = {}
    for each in found:
        widths.setdefault(each["tokens"], []).append(f"{each['even']:.0f} ({each['rule']:.0f})")
    return [("tokens of a row", *kinds), *((str(width), *cells) for width, cells in widths.items())]


def table(results: Results) -> Table:
    """All figures as a table for the terminal."""
    result = Table(*HEADER, title="Ratios, median and quartiles of n turns")
    for figure in figures(results):
        result.add_row(*cells(figure), style="" if figure["holds"] else "yellow")
    return result
