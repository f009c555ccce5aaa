"""What an adapter is trained on: a catalogue entry's data set, or one's own examples."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loracomp.errors import UsageError
from loracomp.registry.examples import Example
from loracomp_lab.catalogue import Entry, Phrased, read_examples, shortened
from loracomp_lab.catalogue.leaks import Leaks, find_leaks, leaks_among
from loracomp_lab.training.config import TrainingConfig
from loracomp_lab.training.rows import Read

LEAST_ROWS = 16
"""Fewest own examples to train on. Fewer are better used to measure the adapters of other tasks."""


@dataclass(frozen=True, slots=True)
class Source:
    """The train rows of a task, and what the training record says about them."""

    task: str
    family: str
    about: Mapping[str, Any]
    """Where the rows come from: dataset_path, dataset_name, training_split, licence, read_from."""
    leaks: Leaks
    read: Read
    """Reads the rows that don't leak."""
    phrasings: bool = False
    """Whether there are phrasings, in which `read` can write the rows."""


def catalogue_source(entry: Entry, data: str | None, config: TrainingConfig) -> Source:
    """The train rows of a catalogue entry; `data` is as for `catalogue.read_examples`, and so are the errors."""
    leaks = find_leaks(entry, data)

    def read(phrased: float | Phrased, seed: int) -> Iterator[Example]:
        rows = read_examples(entry, "train", data, phrased=phrased, seed=seed, max_words=config.max_words)
        return (row for row in rows if row.source_ref not in leaks.source_refs)

    about = {
        "dataset_path": entry.dataset_path,
        "dataset_name": entry.dataset_name,
        "training_split": entry.training_split,
        "licence": entry.licence,
        "read_from": "folder" if data and Path(data).is_dir() else "hub",
    }
    return Source(entry.task, entry.family, about, leaks, read, entry.phrasings is not None)


def own_source(
    task: str, examples: Iterable[Example], config: TrainingConfig, *, read_from: str, family: str = "other"
) -> Source:
    """The train rows among one's own examples of all splits, each once. `read_from` is 'files' or 'database'.

    Raises UsageError if they are fewer than LEAST_ROWS.
    """
    given = list(examples)
    train = {row.content_hash: row for row in given if row.split == "train"}
    leaks = leaks_among(task, train.values(), [row for row in given if row.split != "train"])
    rows = [_shortened(row, config.max_words) for row in train.values() if row.source_ref not in leaks.source_refs]
    if len(rows) < LEAST_ROWS:
        raise UsageError(
            f"task {task}: {len(rows)} train examples have a text, and a training needs {LEAST_ROWS}: import more "
            f"(`loracomp task import`), or let the adapters of other tasks answer (`loracomp task measure {task}`)"
        )
    about = {"dataset_path": task, "dataset_name": None, "training_split": "train", "licence": "not stated"}
    return Source(task, family, about | {"read_from": read_from}, leaks, lambda *_: rows)


def _shortened(example: Example, max_words: int | None) -> Example:
    return example if max_words is None else replace(example, prompt=shortened(example.prompt, max_words))
