"""Inserts jobs that measure how much each adapter improves the answers to a task's examples, and stores the
measurements of libraries."""

from typing import Any

import numpy as np

from loracomp.database.connections import Connection, row_of, rows_of
from loracomp.database.queries import QUERIES
from loracomp.registry.measurement_files import MeasuredExamples


def measure_task(
    connection: Connection,
    task: str,
    *,
    rows: int | None = None,
    adapters: int = 30,
    split: str = "train",
    base_model: str | None = None,
) -> dict[str, Any]:
    """Insert the missing measurement jobs of a task, one job for each example (`loracomp.measure_task`).

    At most `rows` examples of the split are measured (None: all), each under the adapters of the task itself and of the
    nearest tasks, `adapters` in all. Returns examples, learnt (examples left out because the task's own adapter was
    trained on them), adapters_measured and added (jobs). Raises NotFoundError for an unknown task, if no adapter is
    active, or if no example is left.
    """
    values = {"task": task, "rows": rows, "adapters": adapters, "split": split, "base_model": base_model}
    return row_of(connection, QUERIES["measure_task"], values)


def add_measurements(connection: Connection, task: str, base_model: str, measured: MeasuredExamples) -> int:
    """Store the adapters' gains on the task's examples. Returns the number of examples for which gains were added.

    Gains are left out if no registered adapter has their digest (`AdapterFile.digest`).
    """
    found = measured.gains()
    values = {
        "task": task,
        "base_model": base_model,
        "choice_normalization": measured.normalization,
        "content_hashes": [example.content_hash for example in measured.examples],
        "base_scores": found.base_scores.tolist(),
        "bases_are_right": found.bases_are_right.tolist(),
        "adapter_digests": list(measured.adapters.values()),
        "gains": [None if np.isnan(gain) else gain for gain in found.gains.ravel().tolist()],
        "are_right": found.are_right.ravel().tolist(),
    }
    return int(row_of(connection, QUERIES["add_measurements"], values)["added"])


def list_measurements(connection: Connection, task: str | None = None) -> list[dict[str, Any]]:
    """One row for each task and base model: measured examples and adapters; jobs that wait, run or have failed."""
    return rows_of(connection, QUERIES["list_measurements"], {"task": task})
