"""Labelled rows of the tasks that are asked, with measured gains: what a user with a new task has."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.gains import labelled
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.lab.library_build import train_rows
from loracomp.lab.measuring import MEASURED_WORDS
from loracomp.registry.embeddings import load_embeddings
from loracomp.registry.library_files import PACKAGED, read_examples_file
from loracomp.registry.measurement_files import measurements_path, read_measurements
from loracomp.registry.measurements import add_measurements
from loracomp.registry.tasks import add_rows, add_task

KEPT = Path(__file__).parents[1] / "gains"
"""What `benchmarks.gains` has scored."""
SUFFIX = "_labelled"
"""Of the task that a library task's labelled rows stand in: its own rows are kept out with its adapter."""


def add_labelled(connection: Connection, task: str, count: int, data: str, *, base_model: str) -> None:
    """Give a task `count` rows that are measured; a task of the library a second task that holds them alone.

    Their text comes from `data`, the rest from `benchmarks/gains` or the library's own measurements. Running it again
    changes nothing.
    """
    kept = measurements_path(KEPT, task)
    folder = KEPT if kept.is_file() else PACKAGED
    name = task if folder is KEPT else task + SUFFIX
    file, measured = read_examples_file(folder, task), read_measurements(measurements_path(folder, task))
    assert measured
    chosen = {example.content_hash for example in measured.examples[:count]}
    places = [place for place, each in enumerate(file.content_hashes) if each.tobytes() in chosen]
    if folder is PACKAGED:
        add_task(connection, name)
    hashes = [file.content_hashes[place].tobytes() for place in places]
    examples = labelled(task, Path(data)) if folder is KEPT else train_rows(task, data, max_words=MEASURED_WORDS)
    rows = [
        {**asdict(each), "content_hash": each.content_hash.hex()} for each in examples if each.content_hash in chosen
    ]
    add_rows(connection, name, rows)
    values = {"task": name, "content_hashes": hashes}
    new = connection.execute(QUERIES["find_unembedded"], values).fetchall()
    vectors = dict(zip(hashes, file.embeddings[places], strict=True))
    if new:
        load_embeddings(connection, new, np.stack([vectors[row["content_hash"]] for row in new]))
    add_measurements(connection, name, base_model, measured)


def leave_to_labelled(connection: Connection, task: str) -> None:
    """Forget what is measured on the library's own rows of a task, so that a row counts once."""
    connection.execute(
        "DELETE FROM loracomp.measurement WHERE task_id = (SELECT id FROM loracomp.task WHERE name = %s)", [task]
    )
