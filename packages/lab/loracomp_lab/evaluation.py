"""Evaluations: rows of a split become jobs under several policies, workers answer, and the answers are compared.

An evaluation is a set of jobs with the tag `evaluation`, an expected answer, and the example that the job was made
from. Its settings are tags too. Nothing else about it is stored in the database.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, row_of, rows_of
from loracomp.database.queries import QUERIES, named_statements
from loracomp.errors import NotFoundError, RefusedError, UsageError
from loracomp.registry.tasks import ImportReport, add_task, import_examples
from loracomp_lab.accuracy import Outcome, Rows, accuracies, differences
from loracomp_lab.catalogue import load_entry, read_examples

REFERENCES = ("base", "own_task")
"""The policies with which the other policies are compared on each row."""
MOST_CHARACTERS = 100
"""Maximum length of an evaluation's name, which is part of the jobs' idempotency keys."""

_STATEMENTS = named_statements(Path(__file__).with_suffix(".sql"))


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

    All policies named here get the same rows. Those of an earlier call may have got fewer; `lacking_rows` finds them.
    The jobs run in the background (priority -1). With `exclude_own` a job may use neither its row's task nor adapters
    that were trained on that task; policies with router own_task are not affected.

    Raises NotFoundError for an unknown base model and for tasks without rows in the split, RefusedError for an unknown
    policy, and UsageError if the evaluation exists with other settings.
    """
    tasks, policies = list(dict.fromkeys(tasks)), list(dict.fromkeys(policies))  # each once
    if not tasks or not policies:
        raise UsageError("name at least one task and one policy")
    if not name.strip() or len(name) > MOST_CHARACTERS:
        raise UsageError(f"an evaluation's name has 1 to {MOST_CHARACTERS} characters")
    model = row_of(connection, QUERIES["find_base_model"], {"name": base_model})["name"]
    tags = {"evaluation": name, "split": split, "exclude_own": exclude_own, "seed": seed}
    _check_settings(connection, name, tags | {"kind": kind, "base_model": model})
    asked = {"tasks": tasks, "split": split}
    if empty := rows_of(connection, _STATEMENTS["tasks_without_rows"], asked):
        raise NotFoundError(
            f"no {split} rows with text and label of: {', '.join(row['name'] for row in empty)}: loracomp task "
            f"import-catalogue TASK --split {split} imports them, or loracomp evaluate --data"
        )
    values = asked | {
        "name": name,
        "policies": policies,
        "rows_a_task": rows_a_task,
        "exclude_own": exclude_own,
        "kind": kind,
        "base_model": model,
        "seed": seed,
        "tags": Jsonb(tags),
    }
    return rows_of(connection, _STATEMENTS["submit_rows"], values)


def _check_settings(connection: Connection, name: str, settings: dict[str, Any]) -> None:
    for started in rows_of(connection, _STATEMENTS["evaluation"], {"name": name}):
        before = {setting: started[setting] for setting in settings}
        if before != settings:
            told = ", ".join(f"{setting} {value}" for setting, value in before.items() if setting != "evaluation")
            raise UsageError(f"evaluation {name} was started with other settings ({told}): choose another name")


def show_evaluation(connection: Connection, name: str) -> dict[str, Any]:
    """Return the settings of an evaluation and the progress of its jobs. Raises NotFoundError if there is no such
    evaluation."""
    rows = rows_of(connection, _STATEMENTS["evaluation"], {"name": name})
    if not rows:
        raise NotFoundError(f"there is no evaluation {name}: start it with --tasks and --policies")
    return rows[0]


def lacking_rows(connection: Connection, name: str) -> Rows:
    """Return a row (task, policy, asked, of) for each policy that was asked fewer of a task's rows than the evaluation
    has."""
    return rows_of(connection, _STATEMENTS["lacking_rows"], {"name": name})


def read_results(connection: Connection, name: str) -> dict[str, Rows]:
    """Return the results so far: accuracies by task, by family and overall, and comparisons with REFERENCES."""
    outcomes = [Outcome(**row) for row in rows_of(connection, _STATEMENTS["evaluation_outcomes"], {"name": name})]
    return {"accuracy": accuracies(outcomes), "pairs": differences(outcomes, REFERENCES)}


def write_csv(connection: Connection, name: str, path: Path) -> int:
    """Write a CSV file with one line for each job that has ended, without prompts and answers; returns the number of
    lines.

    Raises RefusedError if the file can't be written.
    """
    rows = rows_of(connection, _STATEMENTS["evaluation_rows"], {"name": name})
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise RefusedError(f"{path} cannot be written: {error}") from None
    return len(rows)
