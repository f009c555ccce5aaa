"""The rows that an adapter is trained on: the data set of a catalogue entry, the data sets of a family, or a user's own
examples."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loracomp.errors import UsageError
from loracomp.registry.examples import Example
from loracomp_lab.catalogue import Entry, Family, Phrased, load_entry, read_examples, shortened
from loracomp_lab.catalogue.leaks import Leaks, find_leaks, leaks_among
from loracomp_lab.training.config import TrainingConfig
from loracomp_lab.training.rows import Read

LEAST_ROWS = 16
"""Minimum number of a user's own examples to train on. With fewer, it is better to measure the adapters of other tasks
on them."""


@dataclass(frozen=True, slots=True)
class Source:
    """The train rows of a task, and what the training record says about them."""

    task: str
    family: str
    about: Mapping[str, Any]
    """Where the rows come from; the keys are dataset_path, dataset_name, training_split, licence and read_from."""
    leaks: Leaks
    parts: Mapping[str, Read]
    """For each data set, by its task, a function that reads the rows without leaks."""
    phrasings: bool = False
    """Whether there are phrasings, in which rows can be written."""


def catalogue_source(entry: Entry, data: str | None, config: TrainingConfig) -> Source:
    """Return the train rows of a catalogue entry; `data` and errors are as for `catalogue.read_examples`."""
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
    return Source(entry.task, entry.family, about, leaks, {entry.task: read}, entry.phrasings is not None)


def library_source(task: Entry | Family, data: Path, config: TrainingConfig) -> Source:
    """Return the train rows of an entry or a family; `data` has a folder for each entry. Errors are as for
    `catalogue.read_examples`."""
    sources = [catalogue_source(load_entry(name), str(data / name), config) for name in task.entries]
    if len(sources) == 1:
        return sources[0]
    leaks = Leaks(
        frozenset().union(*(each.leaks.source_refs for each in sources)),
        sum(each.leaks.sharing for each in sources),
        tuple(sorted(set().union(*(each.leaks.compared_with for each in sources)))),
    )
    about = {
        **sources[0].about,
        "dataset_path": ", ".join(dict.fromkeys(each.about["dataset_path"] for each in sources)),
        "dataset_name": None,
        "licence": "; ".join(dict.fromkeys(each.about["licence"] for each in sources)),
    }
    parts = {name: read for each in sources for name, read in each.parts.items()}
    return Source(task.task, task.family, about, leaks, parts, phrasings=True)


def own_source(
    task: str, examples: Iterable[Example], config: TrainingConfig, *, read_from: str, family: str = "other"
) -> Source:
    """Return the train rows among a user's examples of all splits, each once. `read_from` is 'files' or 'database'.

    Raises UsageError if there are fewer than LEAST_ROWS.
    """
    given = list(examples)
    train = {row.content_hash: row for row in given if row.split == "train"}
    leaks = leaks_among(task, train.values(), [row for row in given if row.split != "train"])
    rows = [_shortened(row, config.max_words) for row in train.values() if row.source_ref not in leaks.source_refs]
    if len(rows) < LEAST_ROWS:
        raise UsageError(
            f"task {task}: {len(rows)} train examples have a text, and training needs at least {LEAST_ROWS}: "
            "import more "
            f"(`loracomp task import`), or let the adapters of other tasks answer (`loracomp task measure {task}`)"
        )
    about = {"dataset_path": task, "dataset_name": None, "training_split": "train", "licence": "not stated"}
    return Source(task, family, about | {"read_from": read_from}, leaks, {task: lambda *_: rows})


def _shortened(example: Example, max_words: int | None) -> Example:
    return example if max_words is None else replace(example, prompt=shortened(example.prompt, max_words))
