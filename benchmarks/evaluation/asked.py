"""The rows that are asked, as each kind of prompt puts them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from benchmarks.routing_quality import texts_of
from loracomp.database.connections import Connection
from loracomp.lab.catalogue import Phrased, load_entry, read_examples
from loracomp.lab.catalogue.reading import rows_of
from loracomp.registry.examples import Example
from loracomp.registry.tasks import add_task, import_examples

HANDWRITTEN = {
    "handwritten_sentiment": "sentiment",
    "handwritten_nli": "nli",
    "handwritten_reading": "question_answering",
    "handwritten_science": "question_answering",
    "handwritten_commonsense": "commonsense",
}
"""Tasks of questions that people wrote in words of their own -> the library's family that they belong to."""
BARE = "bare"
"""Rows as people type them: the texts of their columns, without a template's words, with the template's choices."""
KINDS = (*map(str, Phrased), BARE)
"""How the rows of a data set may be put; each kind is asked in a database of its own."""


def import_asked(connection: Connection, task: str, kind: str, data: str) -> None:
    """Import a task and the validation rows that it is asked; running it again changes nothing."""
    if task in HANDWRITTEN:
        add_task(connection, task, family=HANDWRITTEN[task])
        import_examples(connection, task, handwritten_examples(task, data))
        return
    entry = load_entry(task)
    add_task(connection, task, family=entry.family, description=entry.description)
    import_examples(connection, task, asked_examples(task, kind, f"{data}/{task}"))


def asked_examples(task: str, kind: str, folder: str) -> Iterator[Example]:
    """The validation rows of a task in one of KINDS, with the same `source_ref` in each."""
    entry = load_entry(task)
    if kind != BARE:
        yield from read_examples(entry, "validation", folder, phrased=Phrased(kind))
        return
    raw = list(rows_of(folder, None, "validation", ""))
    for example in read_examples(entry, "validation", folder):
        prompt = "\n".join(texts_of(task, raw[int(example.source_ref.partition("#")[2])]))
        yield replace(example, prompt=prompt)


def handwritten_examples(task: str, data: str) -> Iterator[Example]:
    """The questions of a handwritten task, in the file's order."""
    lines = (Path(data) / "handwritten" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        row = json.loads(line)
        if f"handwritten_{row['family']}" == task:
            reference, digest = f"{task}/validation#{number}", sha256(line.encode()).digest()
            yield Example("validation", row["prompt"], tuple(row["choices"]), row["answer"], digest, reference)
