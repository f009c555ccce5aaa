"""Gives evaluated tasks some labelled rows on which each adapter's gain is measured, as a user with a new task would.

    python -m benchmarks.evaluation.labelled ../shared/data

This command scores the labelled rows of the unfamiliar tasks (DATA/TASK/labelled.jsonl) under one adapter of the
library at a time, and stores the scores, without texts, in the folder labelled_rows. It can be stopped and run again.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from loracomp.config import load_settings
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.engine.evidence import fit_evidence
from loracomp.model.encoder import load_encoder
from loracomp.model.loading import load_base_model
from loracomp.registry.embeddings import load_embeddings
from loracomp.registry.examples import Example
from loracomp.registry.library_files import packaged, read_examples_file, read_manifest
from loracomp.registry.measurement_files import MeasuredExamples, measurements_path, read_measurements
from loracomp.registry.measurements import add_measurements
from loracomp.registry.tasks import add_rows, add_task
from loracomp_lab.catalogue import load_entry
from loracomp_lab.catalogue.reading import rows_of
from loracomp_lab.catalogue.templates import Templates
from loracomp_lab.library_build import train_rows
from loracomp_lab.library_writing import write_examples_file
from loracomp_lab.measuring import MEASURED_WORDS, Measuring, read_adapters

from .plan import UNFAMILIAR

KEPT = Path(__file__).with_name("labelled_rows")
"""Where `score` stores examples and scores."""
SUFFIX = "_labelled"
"""Suffix of the second task that holds the labelled rows of a library task.

It is needed because the library's own rows of a task are excluded together with the task's adapter.
"""


def add_labelled(connection: Connection, task: str, count: int, data: str, *, base_model: str) -> None:
    """Give a task `count` labelled rows with measurements. The rows of a library task go to a second task (SUFFIX).

    The texts come from `data`, the rest from KEPT or from the library's own measurements. Idempotent.
    """
    kept = measurements_path(KEPT, task)
    folder = KEPT if kept.is_file() else packaged()
    name = task if folder is KEPT else task + SUFFIX
    file, measured = read_examples_file(folder, task), read_measurements(measurements_path(folder, task))
    assert measured
    chosen = {example.content_hash for example in measured.examples[:count]}
    numbers = [number for number, each in enumerate(file.content_hashes) if each.tobytes() in chosen]
    if folder is not KEPT:
        add_task(connection, name)
    hashes = [file.content_hashes[number].tobytes() for number in numbers]
    read = labelled(task, Path(data)) if folder is KEPT else train_rows(task, data, max_words=MEASURED_WORDS)
    examples = [each for each in read if each.content_hash in chosen]
    add_rows(connection, name, [{**asdict(each), "content_hash": each.content_hash.hex()} for each in examples])
    values = {"task": name, "content_hashes": hashes}
    new = connection.execute(QUERIES["find_unembedded"], values).fetchall()
    vectors = dict(zip(hashes, file.embeddings[numbers], strict=True))
    if new:
        load_embeddings(connection, new, np.stack([vectors[row["content_hash"]] for row in new]))
    add_measurements(connection, name, base_model, measured)
    add_evidence(connection, name, measured, examples)


def add_evidence(connection: Connection, task: str, measured: MeasuredExamples, examples: Sequence[Example]) -> None:
    """Write the evidence that a worker would have written after it had measured these examples."""
    ids = {row["digest"]: row["id"] for row in connection.execute("SELECT id, digest FROM loracomp.adapter")}
    scores = {each.content_hash: rows for each, rows in zip(measured.examples, measured.scores, strict=True)}
    rows = [
        {
            "choices": each.choices,
            "label": each.label,
            "choice_scores": {
                str(ids[digest]): of_adapter[: len(each.choices or ())].tolist()
                for digest, of_adapter in zip(measured.adapters.values(), scores[each.content_hash][1:], strict=True)
                if digest in ids and not np.isnan(of_adapter[0])
            },
        }
        for each in examples
    ]
    if evidence := fit_evidence(rows):
        about = connection.execute(
            "SELECT t.id AS task_id, b.id AS base_model_id, now() AS read_at"
            " FROM loracomp.task AS t, loracomp.find_base_model(NULL) AS b WHERE t.name = %s", [task]
        ).fetchone()  # fmt: skip
        assert about
        connection.execute(QUERIES["record_evidence"], about | evidence)


def leave_to_labelled(connection: Connection, task: str) -> None:
    """Delete the measurements of the library's own rows of a task, so that no row counts twice."""
    connection.execute(
        "DELETE FROM loracomp.measurement WHERE task_id = (SELECT id FROM loracomp.task WHERE name = %s)", [task]
    )


def labelled(task: str, data: Path) -> Iterator[Example]:
    """The labelled rows of a task without a train split, as train examples."""
    entry = load_entry(task)
    templates = Templates(task, entry.doc_to_text, entry.doc_to_choice, entry.doc_to_target)
    for number, row in enumerate(rows_of(str(data / task), None, "labelled", "")):
        if example := templates.example(row, "train", f"{task}/labelled#{number}"):
            yield example


def score(data: Path) -> None:
    """Add the missing scores to the files in KEPT."""
    manifest = read_manifest(packaged())
    base = load_base_model(manifest.base_model.source, cache_dir=load_settings().home / "models")
    measuring, encoder = Measuring(base, read_adapters(packaged(), base)), load_encoder(manifest.encoder.source)
    for task in UNFAMILIAR:
        examples = list(labelled(task, data))
        write_examples_file(KEPT, task, examples, encoder)
        for scored in measuring.complete(measurements_path(KEPT, task), examples):
            print(f"{task}: {scored} rows", flush=True)


if __name__ == "__main__":
    score(Path(sys.argv[1]))
