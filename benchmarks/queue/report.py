"""Turns results in JSON into the tables of docs/queue.md that compare systems."""

from pathlib import Path
from typing import Any

from benchmarks.evaluation.report import as_markdown, copy_tables

from .throughput import COSTS

SYSTEMS = {
    "loracomp": "ours", "pgqueuer": "pgqueuer", "procrastinate": "procrastinate", "awa": "awa-pg", "bare": "bare table",
}  # fmt: skip
Part = dict[str, Any]


def fill_page(page: Path, figures: dict[str, Part]) -> None:
    """Fill the tables of a page whose parts have been measured."""
    tables = {"throughput": throughput, "snapshot": snapshot}
    copy_tables(page, {name: as_markdown(table(figures[name])) for name, table in tables.items() if name in figures})


def throughput(part: Part) -> list[tuple[str, ...]]:
    """Jobs per second and costs of each system by batch size, and how many times as fast ours is."""
    rows = ordered(part)
    ours = {row["batch"]: row["jobs_per_s"] for row in rows if row["system"] == "loracomp"}
    return [
        (part["day"], "batch", "jobs/s, rounds sorted", "median", "ours is", *map(spoken, COSTS), "bytes a result"),
        *(
            (
                named(part, row["system"]),
                str(row["batch"]),
                ", ".join(f"{rate:,}" for rate in sorted(row["rounds"])),
                f"{row['jobs_per_s']:,}",
                f"{ours[row['batch']] / row['jobs_per_s']:.2f} x",
                *(f"{row[cost]:,.6g}" if cost in row else "" for cost in COSTS),
                f"{row['bytes_a_result']:,}",
            )
            for row in sorted(rows, key=lambda row: -row["batch"])
        ),
    ]


def snapshot(part: Part) -> list[tuple[str, ...]]:
    """Jobs per second of each system alone and under a held snapshot."""
    clean = {row["system"]: row for row in part["rows"] if row["snapshot"] == "none"}
    return [
        (part["day"], "minutes", "alone, jobs/s", "snapshot held", "of alone", "first fifth", "last fifth"),
        *(
            (
                named(part, row["system"]),
                f"{row['minutes']:g}",
                f"{clean[row['system']]['jobs_per_s']:,}",
                *(f"{row['jobs_per_s']:,}", f"{row['of_clean']:.2f}"),
                *(f"{row['first_fifth']:,}", f"{row['last_fifth']:,}"),
            )
            for row in ordered(part)
            if row["snapshot"] == "held"
        ),
    ]


def ordered(part: Part) -> list[dict[str, Any]]:
    """The rows of a part in the order of SYSTEMS."""
    return sorted(part["rows"], key=lambda row: list(SYSTEMS).index(row["system"]))


def named(part: Part, system: str) -> str:
    """A system with the version that was measured."""
    return " ".join(filter(None, (SYSTEMS[system], part.get(system))))


def spoken(column: str) -> str:
    """The name of a column of the results as words."""
    return column.replace("_", " ")
