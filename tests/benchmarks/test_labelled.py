"""The labelled rows that an evaluation gives to a task, with their text from the data sets."""

from pathlib import Path

import pytest

from benchmarks.evaluation.labelled import SUFFIX, add_labelled
from job_data import BASE
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from loracomp.registry.tasks import add_task

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.data
@pytest.mark.parametrize(("task", "name"), [("qqp", "qqp"), ("copa", f"copa{SUFFIX}")])
def test_labelled_rows_have_text_and_a_right_answer(connection: Connection, task: str, name: str) -> None:
    if name == task:
        add_task(connection, task)
    for _ in range(2):
        add_labelled(connection, task, 5, str(DATA), base_model=BASE)
        rows = connection.execute(
            "SELECT e.split, e.prompt, e.label = ANY (e.choices) AS is_one FROM loracomp.example AS e"
            " JOIN loracomp.task AS t ON t.id = e.task_id WHERE t.name = %s",
            [name],
        ).fetchall()
        assert len(rows) == 5
        assert all(row["split"] == "train" and row["prompt"] and row["is_one"] for row in rows)
