"""Results as JSON -> the tables and plot of docs/performance.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.evaluation.report import as_markdown, copy_tables

RESULTS = "engine.json"
Results = dict[str, Any]
"""Part -> when and where it was measured, its figures, and its steps or curves."""
ORDER = (
    *("scoring", "paper", "generation", "merging", "throughput", "latency", "library", "memory"),
    *("growth", "composing", "ways", "profile"),
)
"""Of parts on the page."""


def read_results(folder: Path) -> Results:
    """What was measured so far."""
    path = folder / RESULTS
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    return {part: found[part] for part in sorted(found, key=ORDER.index)}


def keep(folder: Path, part: str, measured: dict[str, Any]) -> None:
    """Put what a part found in the place of what it had."""
    results = read_results(folder) | {part: measured}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n")


def write_report(folder: Path) -> Results:
    """Draw the plot, and fill the tables of the page beside the folder where there is one."""
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
    """All figures, by part."""
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
    """A ratio in three digits; a small one as a fraction."""
    return f"1/{1 / ratio:.0f}" if ratio < 0.2 else f"{ratio:.3g}"


def machines(results: Results) -> list[Sequence[str]]:
    """What was measured on what."""
    parts: dict[tuple[str, ...], list[str]] = {}
    for name, part in results.items():
        parts.setdefault((part["machine"], part["base_model"], part["versions"], part["at"][:10]), []).append(name)
    return [
        ("parts", "machine", "base model", "versions", "day"),
        *((", ".join(each), *on) for on, each in parts.items()),
    ]


def memory(results: Results) -> list[Sequence[str]]:
    """Bytes held for a batch's mixes, over those of its adapters: a row a strategy."""
    found: dict[str, dict[str, float]] = results.get("memory", {}).get("held", {})
    kinds = next(iter(found.values()), {})
    return [
        ("strategy", *kinds),
        *((strategy, *(f"{each:.2f}" for each in held.values())) for strategy, held in found.items()),
    ]


def composing(results: Results) -> list[Sequence[str]]:
    """Milliseconds of a batch's compositions: a row a strategy."""
    found: dict[str, dict[str, float]] = results.get("composing", {}).get("composing", {})
    kinds = next(iter(found.values()), {})
    return [
        ("strategy", *kinds),
        *((strategy, *(f"{each:.1f}" for each in ms.values())) for strategy, ms in found.items()),
    ]


def steps(results: Results) -> list[Sequence[str]]:
    """Milliseconds of a batch's steps: a row a step, a column a part that ran a worker."""
    parts = {name: part["steps"] for name, part in results.items() if "steps" in part}
    names = {step: None for each in parts.values() for step in each}
    return [("step", *parts), *((step, *(f"{each[step]:.1f}" for each in parts.values())) for step in names)]


def profile(results: Results) -> list[Sequence[str]]:
    """Milliseconds of a batch by kinds of operations: a row a kind, a column a run."""
    runs = results.get("profile", {}).get("profile", {})
    kinds = next(iter(runs.values()), {})
    return [("", *runs), *((kind, *(f"{each[kind]:.0f}" for each in runs.values())) for kind in kinds)]


def ways(results: Results) -> list[Sequence[str]]:
    """Of how many shared adapters rows' own factors cost as much: a row a width, measured and by the rule."""
    found: list[dict[str, Any]] = results.get("ways", {}).get("ways", [])
    kinds = {f"{each['strategy']}, rank {each['rank']}": None for each in found}
    widths: dict[int, list[str]] = {}
    for each in found:
        widths.setdefault(each["tokens"], []).append(f"{each['even']:.0f} ({each['rule']:.0f})")
    return [("tokens of a row", *kinds), *((str(width), *cells) for width, cells in widths.items())]


def table(results: Results) -> Table:
    """All figures, for a terminal."""
    result = Table(*HEADER, title="Ratios, median and quartiles of n turns")
    for figure in figures(results):
        result.add_row(*cells(figure), style="" if figure["holds"] else "yellow")
    return result
