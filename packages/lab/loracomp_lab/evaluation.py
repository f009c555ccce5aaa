"""Evaluations: rows of a split become jobs under several policies; workers answer, and SQL compares the answers."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loracomp.database.connections import Connection, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, RefusedError
from loracomp.registry.tasks import ImportReport, add_task, import_examples
from loracomp_lab.catalogue import load_entry, read_examples

REFERENCES = ("base", "own_task")
"""Policies with which the other policies are compared on each row."""

Rows = list[dict[str, Any]]


def import_split(connection: Connection, task: str, split: str, data: str) -> ImportReport:
    """Import a split of a catalogue entry from `data`/<task>/<split>.jsonl. Importing it again changes nothing.

    Raises NotFoundError if the task is not in the catalogue, or if there is no such file.
    """
    entry = load_entry(task)
    add_task(connection, entry.task, family=entry.family, description=entry.description)
    return import_examples(connection, entry.task, read_examples(entry, split, str(Path(data) / task)))


def start_evaluation(
    connection: Connection,
    name: str,
    *,
    tasks: Sequence[str],
    policies: Sequence[str],
    split: str = "validation",
    rows_a_task: int | None = None,
    exclude_own: bool = False,
    kind: str = "predict",
    base_model: str | None = None,
    seed: int = 0,
) -> Rows:
    """Insert the missing jobs of an evaluation; returns a row (task, policy, jobs, added) for each task and policy.

    Raises NotFoundError for unknown tasks and policies and for tasks without rows in the split, and UsageError if the
    evaluation exists with other settings.
    """
    values = {
        "name": name,
        "tasks": list(tasks),
        "policies": list(policies),
        "split": split,
        "rows_a_task": rows_a_task,
        "exclude_own": exclude_own,
        "kind": kind,
        "base_model": base_model,
        "seed": seed,
    }
    return rows_of(connection, QUERIES["start_evaluation"], values)


def show_evaluation(connection: Connection, name: str) -> dict[str, Any]:
    """Settings of an evaluation and the progress of its jobs. Raises NotFoundError."""
    rows = rows_of(connection, QUERIES["evaluation"], {"name": name})
    if not rows:
        raise NotFoundError(f"there is no evaluation {name}: start it with --tasks and --policies")
    return rows[0]


def read_results(connection: Connection, name: str) -> dict[str, Rows]:
    """Results so far: accuracy by task, by family and overall; comparisons with REFERENCES."""
    return {
        "accuracy": rows_of(connection, QUERIES["evaluation_accuracy"], {"name": name}),
        "pairs": rows_of(connection, QUERIES["evaluation_pair"], {"name": name, "references": list(REFERENCES)}),
    }


def write_csv(connection: Connection, name: str, path: Path) -> int:
    """Write a CSV file with one line for each job that has ended, without prompts and answers; returns their number.

    Raises RefusedError if the file can't be written.
    """
    rows = rows_of(connection, QUERIES["evaluation_rows"], {"name": name})
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise RefusedError(f"{path} cannot be written: {error}") from None
    return len(rows)
