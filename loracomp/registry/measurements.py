"""What adapters are worth on examples: asked here, found out by workers."""

from typing import Any

from loracomp.database.connections import Connection, translated_errors
from loracomp.database.queries import QUERIES


def measure_task(
    connection: Connection,
    task: str,
    *,
    rows: int | None = None,
    adapters: int = 30,
    split: str = "train",
    base_model: str | None = None,
) -> dict[str, Any]:
    """Insert the jobs that are missing, one an example; see `loracomp.measure_task` in docs/sql.md.

    At most `rows` examples of the split (None: all), each under the adapters of the `adapters` nearest tasks. Returns
    examples, learnt (those that the task's own adapter has learnt from, left out), adapters_measured, added. Raises
    NotFoundError for an unknown task, without an active adapter, or where no example is left.
    """
    values = {"task": task, "rows": rows, "adapters": adapters, "split": split, "base_model": base_model}
    with translated_errors():
        row = connection.execute(QUERIES["measure_task"], values).fetchone()
    assert row
    return row


def list_measurements(connection: Connection, task: str | None = None) -> list[dict[str, Any]]:
    """A row a task and base model: examples measured, under how many adapters, jobs that wait, run and have failed."""
    with translated_errors():
        return connection.execute(QUERIES["list_measurements"], {"task": task}).fetchall()
