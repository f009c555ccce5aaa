"""Makes the tables of declared tables in docs/figures.md from the results in docs/performance."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from benchmarks.pages import as_markdown

COLUMNS = {
    "base, one by one": "`base`, row by row",
    "default, one by one": "`default`, row by row",
    "0": "table",
    "16": "table, 16 corrections",
    "64": "table, 64 corrections",
}
"""Headings, by the fields of declared.json."""


def declared_tables(
    declared: Mapping[str, Any], described: Mapping[str, Any], certain: Mapping[str, Any]
) -> dict[str, str]:
    """The tables, by their names in the page."""
    return {
        "declared": as_markdown(of_tasks(declared)),
        "described": as_markdown(of_topics(described)),
        "certain": as_markdown(of_promises(certain)),
    }


def of_tasks(declared: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each task: the accuracy in %, and the mean of all tasks."""
    rows = [("task (rows)", *COLUMNS.values())]
    for task, found in declared.items():
        rows.append((f"{task} ({found['rows']})", *(f"{found[field]:.1f}" for field in COLUMNS)))
    means = (f"{mean(found[field] for found in declared.values()):.1f}" for field in COLUMNS)
    return [*rows, ("mean", *means)]


def of_topics(described: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each set of texts: accuracy in % at first, and with 16 corrections."""
    rows = [
        (
            "texts (rows, choices)", "without descriptions: at first", "16 corrections", "with descriptions: at first",
            "16 corrections", "nearest description alone", "regression on embeddings, 16 corrections",
        )
    ]  # fmt: skip
    for name, found in described.items():
        shares = (*found["plain"], *found["described"], *found["embedding"])
        rows.append((f"{name} ({found['rows']}, {found['choices']})", *(f"{share:.1f}" for share in shares)))
    return rows


def of_promises(certain: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each task: which answers are certain with 64 and with 256 drawn corrections, in %."""
    rows = [
        (
            "task (rows)", "64 corrections: right", "certain", "of these right", "256 corrections: right", "certain",
            "of these right", "128 of these drawn again: certain", "broken",
        )
    ]  # fmt: skip
    for task, found in certain.items():
        shares = [found[count][field] for count in ("64", "256") for field in ("right", "certain", "right if certain")]
        shares += [found["drawn again"]["certain"], found["drawn again"]["broken"]]
        rows.append((f"{task} ({found['rows']})", *("" if share is None else f"{share:.1f}" for share in shares)))
    return rows
