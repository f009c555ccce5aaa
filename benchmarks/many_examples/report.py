"""Makes the table of docs/scaling.md on many examples."""

from typing import Any

from .made_up import READERS

OTHERS = ("pgvector", "ChromaDB")


def by_size(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each number of examples: milliseconds for each job, the lowest recall of a login, and the size
    of the index."""
    return [
        (
            "examples", *(f"{share} of the tasks: ms a job, p50 and p99" for share in READERS),
            *(f"{name}: p50, found" for name in OTHERS),
            "nearest 30 found", "same mix as exact", "index, MB", "built in, s", "joining it, rows/s",
        ),
        *(row(int(size), part) for size, part in figures.items()),
    ]  # fmt: skip


def row(size: int, part: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells for one number of examples."""
    found = {each["searched_by"]: each for each in part["rows"]}
    ours = [found[f"ours, {share} of the tasks"] for share in READERS]
    others = (found.get(name) for name in OTHERS)
    return (
        f"{size:,}",
        *(f"{each['p50_ms']:.1f}, {each['p99_ms']:.1f}" for each in ours),
        *(f"{each['p50_ms']:.1f}, {each['recall']:.1%}" if each else "" for each in others),
        f"{min(each['recall'] for each in ours):.1%}",
        f"{min(each['same_mix'] for each in ours):.1%}",
        f"{part['index_mb']:,.0f}", f"{part['indexed_s']:,.0f}", f"{part['joined_per_s']:,}",
    )  # fmt: skip
