"""The catalogue of datasets (one YAML file each), and a reader for datasets on the hub or in folders of JSON lines.

Fields have the names and meanings of lm-evaluation-harness: doc_to_text is a Jinja template; doc_to_choice is a list of
texts, or one `{{ expression }}` that gives a list; doc_to_target is a column or one `{{ expression }}`, which gives the
right choice's index (from 0) or its text. Unlike in the harness, the value of an expression is used directly, and not
rendered as text and parsed again.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from loracomp.errors import NotFoundError, RefusedError, UsageError, wrong_fields
from loracomp.registry.examples import Example
from loracomp_lab.catalogue.phrasing import Phrased as Phrased
from loracomp_lab.catalogue.phrasing import Phraser, Phrasings, load_phrasings
from loracomp_lab.catalogue.reading import rows_of
from loracomp_lab.catalogue.templates import Templates

FOLDER = Path(__file__).parent
SPLITS = ("train", "validation")


class Entry(BaseModel):
    """One dataset of the catalogue: where it is, which task it is for, and how its rows become prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    family: str
    description: str
    licence: str
    dataset_path: str
    """Hub id, or a folder with train.jsonl and validation.jsonl."""
    dataset_name: str | None = None
    training_split: str | None = None
    """Name of the dataset's training split. None: no adapter may be trained on this task, because it is kept as an
    unseen task."""
    validation_split: str
    data_note: str | None = None
    """A note on the rows that the shipped library was trained and measured on, if they are not from the splits that the
    entry names."""
    doc_to_text: str
    doc_to_choice: str | list[str] | None = None
    """How to make the choices. None: the answer is free text, given by doc_to_target."""
    doc_to_target: str
    phrasings: str | Phrasings | None = None
    """Other prompts for the same rows (`loracomp_lab.catalogue.phrasing`): a file's name in the package, or the
    phrasings."""
    columns: dict[str, str] = {}
    """The variables of the phrasings' templates: name -> Jinja template over the row's columns."""
    labels: list[str] | None = None
    """The phrasings' names of the choices, in the order of doc_to_choice. None: phrasings use the row's own choices."""
    phrased_choices: str | None = None
    """Choices for the phrasings, if they must differ from doc_to_choice: one `{{ expression }}`, in the same order."""

    @property
    def entries(self) -> tuple[str, ...]:
        """Return only this entry, under the name that `Family` has for its entries."""
        return (self.task,)

    def split_name(self, split: str) -> str:
        """Return the dataset's name for its split 'train' or 'validation'. Raises UsageError if the entry names
        none."""
        names = {"train": self.training_split, "validation": self.validation_split}
        name = names.get(split)
        if name is None:
            known = ", ".join(key for key, value in names.items() if value)
            raise UsageError(f"catalogue entry {self.task!r} has no split {split!r}; it has {known}")
        return name


class Family(BaseModel):
    """A task with the rows of several entries, written in the entries' phrasings, so that its adapter answers prompts
    in any wording."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    family: str
    description: str
    entries: tuple[str, ...]
    """Names of the entries."""


def load_task(name: str) -> Entry | Family:
    """Read the family `name` (a file in families/) or, if there is no such family, the entry `name` as `load_entry`
    does."""
    path = FOLDER / "families" / f"{name}.yaml"
    return Family.model_validate(yaml.safe_load(path.read_text())) if path.is_file() else load_entry(name)


def entry_names() -> list[str]:
    """Return the sorted names of the catalogue entries in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_entry(name: str) -> Entry:
    """Read the catalogue entry `name`; a name that ends in .yaml or .yml is the path of a user's file.

    Raises NotFoundError if the entry does not exist, and RefusedError, which names file and field, if it is not valid.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise NotFoundError(f"no catalogue entry {name!r}; there are {', '.join(entry_names())}, or name a .yaml file")
    try:
        entry = Entry.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise RefusedError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        raise RefusedError(f"{path}: {wrong_fields(error)}") from error
    _templates(entry)
    _phraser(entry)
    return entry


def data_note(task: str, read_from: str | None) -> str | None:
    """Return `Entry.data_note` of a task if its rows were read from a folder, or None if they were read from the
    hub."""
    return load_entry(task).data_note if read_from == "folder" and task in entry_names() else None


def phrasings_of(task: str) -> Phrasings | None:
    """Return the phrasings of a task's entry, or None if the task is not in the catalogue or has no phrasings."""
    return _phrasings(load_entry(task)) if task in entry_names() else None


def read_examples(
    entry: Entry,
    split: str,
    data: str | None = None,
    *,
    phrased: float | Phrased = 0.0,
    seed: int = 0,
    max_words: int | None = None,
) -> Iterator[Example]:
    """Read the examples of one split ('train' or 'validation'), in the dataset's order.

    `data` is a hub id or a folder of JSON lines (train.jsonl, validation.jsonl) to read instead of the entry's
    dataset_path. Rows without a gold label (-1, as on the hub) or whose choices are not distinct are left out.
    `phrased` is either the kind of phrasing for all rows, or a share: this share of the rows, drawn by `seed`, is
    written in one of the entry's training phrasings, and the other rows in the entry's own template. An entry without
    phrasings uses its own template for all rows. `max_words`: the middle of each longer text of a row is cut out;
    content_hash stays the hash of the whole row. Raises UsageError, NotFoundError, or RefusedError, which names entry,
    field and row.
    """
    templates, phraser = _templates(entry), _phraser(entry)
    for source_ref, row in _rows(entry, split, data):
        whole = templates.example(row, split, source_ref)
        if whole is None:
            continue
        shown = row if max_words is None else {name: shortened(value, max_words) for name, value in row.items()}
        example = replace(templates.example(shown, split, source_ref) or whole, content_hash=whole.content_hash)
        rng = random.Random(f"{seed} {source_ref}")  # noqa: S311  reproducible, not secret
        how = phrased if isinstance(phrased, Phrased) else Phrased.TRAINED if rng.random() < phrased else Phrased.OWN
        yield example if phraser is None or how is Phrased.OWN else phraser.phrase(shown, example, how, rng)


def read_inputs(entry: Entry, split: str, data: str | None = None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Return, for each row of a split, its source reference and the unchanged texts from which doc_to_text makes its
    prompt.

    `data` and errors are as for `read_examples`.
    """
    templates = _templates(entry)
    return ((source_ref, templates.inputs(row)) for source_ref, row in _rows(entry, split, data))


def _rows(entry: Entry, split: str, data: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = rows_of(data or entry.dataset_path, entry.dataset_name, split, entry.split_name(split))
    return ((f"{entry.task}/{split}#{number}", row) for number, row in enumerate(rows))


def shortened(value: Any, max_words: int) -> Any:
    """Return the value; if it is a text with more than `max_words` words, without its middle, because a verdict is
    often at the end."""
    words = value.split(" ") if isinstance(value, str) else []
    if len(words) <= max_words:
        return value
    head = max_words // 2
    return " ".join([*words[:head], "...", *words[len(words) - (max_words - head) :]])


def _templates(entry: Entry) -> Templates:
    return Templates(entry.task, entry.doc_to_text, entry.doc_to_choice, entry.doc_to_target)


def _phrasings(entry: Entry) -> Phrasings | None:
    return load_phrasings(entry.phrasings) if isinstance(entry.phrasings, str) else entry.phrasings


def _phraser(entry: Entry) -> Phraser | None:
    """Return the object that writes rows in the entry's phrasings, or None if it has none. Raises RefusedError, which
    names entry and field."""
    if (phrasings := _phrasings(entry)) is None:
        return None
    if entry.doc_to_choice is None:
        raise RefusedError(f"catalogue entry {entry.task!r}: phrasings need choices, and the entry has none")
    return Phraser(entry.task, phrasings, columns=entry.columns, labels=entry.labels, choices=entry.phrased_choices)
