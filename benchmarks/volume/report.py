"""Turns results in JSON into the tables of docs/scaling.md: times of views, and the queue while analysts read."""

import json
from pathlib import Path
from typing import Any

from benchmarks.evaluation.report import as_markdown, copy_tables

RESULTS = "volume.json"
ANALYSTS = "analysts.json"
QUICK_MS = 20
"""Milliseconds; views that are always faster are left out of the table: dimensions, queue, workers."""


def keep(folder: Path, measured: dict[str, Any]) -> None:
    """Store results in place of earlier ones with as many jobs, and fill the tables of scaling.md by the folder."""
    path = folder / RESULTS
    found = json.loads(path.read_text()) if path.is_file() else {}
    found = {int(jobs): result for jobs, result in found.items()} | {measured["jobs"]: measured}
    results = {jobs: found[jobs] for jobs in sorted(found)}
    path.write_text(json.dumps(results, indent=1, default=str) + "\n")
    tables = {
        "views": as_markdown(views(results)),
        "sizes": as_markdown(sizes(results)),
        "refreshes": as_markdown(refreshes(results)),
    }
    copy_tables(folder.parent / "scaling.md", tables)


def keep_analysts(folder: Path, measured: dict[str, Any]) -> None:
    """Store results in place of earlier ones, and fill their table in scaling.md next to the folder."""
    (folder / ANALYSTS).write_text(json.dumps(measured, indent=1) + "\n")
    copy_tables(folder.parent / "scaling.md", {"analysts": as_markdown(analysts(measured))})


def analysts(measured: dict[str, Any]) -> list[tuple[str, ...]]:
    """Jobs a second, and milliseconds of claims and records, while nobody reads and while analysts do."""
    names = [name for name in measured["rows"][0] if name not in ("while", "jobs_s")]
    return [
        ("while", "jobs/s", *(name.removesuffix("_ms").replace("_", " ") for name in names)),
        *((row["while"], f"{row['jobs_s']:,.0f}", *(f"{row[name]:.1f}" for name in names)) for row in measured["rows"]),
    ]


def views(results: dict[int, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Table of the milliseconds of each view: read completely, and by a typical query."""
    names = sorted({view["name"] for result in results.values() for view in result["views"]})
    rows = [(name, [find(result["views"], name) for result in results.values()]) for name in names]
    slow = [(name, found) for name, found in rows if any(is_slow(view) for view in found)]
    heads = [head for jobs in results for head in (f"{jobs:,} jobs", "of that, a part")]
    return [
        ("view", *heads, ""),
        *(
            (
                f"`{name}`",
                *(cell for view in found for cell in (spoken(view, "ms"), spoken(view, "narrow_ms"))),
                note(found),
            )
            for name, found in slow
        ),
    ]


def sizes(results: dict[int, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Table of the megabytes of the three large tables with their indexes, by the number of jobs."""
    tables = [row["name"] for row in next(iter(results.values()))["sizes"]]
    return [
        ("jobs", *(f"`{name}`, MB" for name in tables), "kB a job"),
        *(
            (
                f"{jobs:,}",
                *(f"{row['bytes'] / 2**20:,.0f}" for row in result["sizes"]),
                f"{sum(row['bytes'] for row in result['sizes']) / 1000 / jobs:.1f}",
            )
            for jobs, result in results.items()
        ),
    ]


def refreshes(results: dict[int, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Table of the milliseconds that a refresh of the reports takes, by the number of days that changed."""
    measured = {jobs: result["refresh_ms"] for jobs, result in results.items() if "refresh_ms" in result}
    return [
        ("jobs", "all days, ms", "the busiest day, ms", "none, ms"),
        *(
            (f"{jobs:,}", *(spoken(times, name) for name in ("all_days", "a_day", "no_day")))
            for jobs, times in measured.items()
        ),
    ]


def find(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((row for row in rows if row["name"] == name), {})


def is_slow(view: dict[str, Any]) -> bool:
    return "ms" in view and (view["ms"] is None or view["ms"] >= QUICK_MS)


def spoken(times: dict[str, Any], key: str) -> str:
    """Milliseconds as a cell; empty if they were not measured."""
    if key not in times:
        return ""
    return "too long" if times[key] is None else f"{times[key]:,.0f}"


def note(found: list[dict[str, Any]]) -> str:
    """A note on a view that is refreshed, or that is not read completely."""
    view = next(view for view in found if view)
    if view["is_refreshed"]:
        return "refreshed"
    return (
        "a chart: " + view["query"].removeprefix("SELECT ").partition(", count(*)")[0]
        if "count(*)" in view["query"]
        else ""
    )
