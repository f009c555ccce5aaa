"""The catalogue: one YAML file a dataset, and one reader for the hub and for folders of JSON lines.

Field names and meaning are lm-evaluation-harness's: doc_to_text is a Jinja template; doc_to_choice is a list of texts,
or one `{{ expression }}` that gives a list; doc_to_target is a column or one `{{ expression }}`, which gives the right
choice's index (from 0) or its text. An expression keeps its type: nothing is rendered to text and parsed again.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from loracomp.errors import NotFoundError, RefusedError, UsageError
from loracomp.lab.catalogue.phrasing import Phrased, Phraser, Phrasings, load_phrasings
from loracomp.lab.catalogue.reading import rows_of
from loracomp.lab.catalogue.templates import Templates
from loracomp.registry.examples import Example

__all__ = [
    "SPLITS",
    "Entry",
    "Phrased",
    "data_note",
    "entry_names",
    "load_entry",
    "phrasings_of",
    "read_examples",
    "read_inputs",
]

FOLDER = Path(__file__).parent
SPLITS = ("train", "validation")


class Entry(BaseModel):
    """One dataset: where it is, what task it teaches, and how its rows become prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    family: str
    description: str
    licence: str
    dataset_path: str
    """Hub id, or a folder with train.jsonl and validation.jsonl."""
    dataset_name: str | None = None
    training_split: str | None = None
    """None: the task is kept unseen; no adapter may be trained on it."""
    validation_split: str
    data_note: str | None = None
    """Which rows the shipped library learnt from and is measured on, where they are not the splits named here."""
    doc_to_text: str
    doc_to_choice: str | list[str] | None = None
    """None: the answer is free text, given by doc_to_target."""
    doc_to_target: str
    phrasings: str | Phrasings | None = None
    """Other ways to put a row (`lab.catalogue.phrasing`): the name of some that come with the package, or one's own."""
    columns: dict[str, str] = {}
    """What the phrasings' templates call the parts of a row: name -> a Jinja template over the row's columns."""
    labels: list[str] | None = None
    """What the phrasings call the choices, in the order of doc_to_choice. None: the choices are the row's own."""
    phrased_choices: str | None = None
    """The row's own choices where a phrasing needs others than doc_to_choice: one `{{ expression }}`, in its order."""

    def split_name(self, split: str) -> str:
        """The dataset's own name of 'train' or 'validation'. Raises UsageError where the entry has none."""
        names = {"train": self.training_split, "validation": self.validation_split}
        name = names.get(split)
        if name is None:
            known = ", ".join(key for key, value in names.items() if value)
            raise UsageError(f"catalogue entry {self.task!r} has no split {split!r}; it has {known}")
        return name


def entry_names() -> list[str]:
    """Names of the entries that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_entry(name: str) -> Entry:
    """Read the entry of that name, or a YAML file of one's own.

    Raises NotFoundError if there is none, RefusedError naming file and field if it can't be used.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise NotFoundError(f"no catalogue entry {name!r}; there are {', '.join(entry_names())}, or name a .yaml file")
    try:
        entry = Entry.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise RefusedError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise RefusedError(f"{path}: {wrong}") from error
    _templates(entry)
    _phraser(entry)
    return entry


def data_note(task: str, read_from: str | None) -> str | None:
    """The note of a task's entry (`Entry.data_note`) on rows that were read from a folder; None on the hub's own."""
    return load_entry(task).data_note if read_from == "folder" and task in entry_names() else None


def phrasings_of(task: str) -> Phrasings | None:
    """The phrasings of a task's entry; None where the catalogue lacks the task, or the entry has none."""
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
    """Examples of one split ('train' or 'validation'), in the dataset's order.

    `data` is a hub id or a folder of JSON lines (train.jsonl, validation.jsonl) to read instead of the entry's
    dataset_path. Rows without a gold label (-1, as on the hub) or whose choices are not distinct are left out.
    `phrased`: a share of the rows, drawn by `seed`, is put in one of the entry's phrasings for training, the others
    in its own template; or which kind of phrasing all are put in. An entry without phrasings has its template alone.
    `max_words`: a longer text of a row loses its middle; content_hash stays that of the whole row.
    Raises UsageError, NotFoundError, or RefusedError naming entry, field and row.
    """
    templates, phraser = _templates(entry), _phraser(entry)
    for source_ref, row in _rows(entry, split, data):
        whole = templates.example(row, split, source_ref)
        if whole is None:
            continue
        shown = row if max_words is None else {name: _shortened(value, max_words) for name, value in row.items()}
        example = replace(templates.example(shown, split, source_ref) or whole, content_hash=whole.content_hash)
        rng = random.Random(f"{seed} {source_ref}")  # noqa: S311  reproducible, not secret
        how = phrased if isinstance(phrased, Phrased) else Phrased.TRAINED if rng.random() < phrased else Phrased.OWN
        yield example if phraser is None or how is Phrased.OWN else phraser.phrase(shown, example, how, rng)


def read_inputs(entry: Entry, split: str, data: str | None = None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Source reference of each row of a split, and the texts that doc_to_text makes its prompt of, untouched.

    `data` and errors as of `read_examples`.
    """
    templates = _templates(entry)
    return ((source_ref, templates.inputs(row)) for source_ref, row in _rows(entry, split, data))


def _rows(entry: Entry, split: str, data: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = rows_of(data or entry.dataset_path, entry.dataset_name, split, entry.split_name(split))
    return ((f"{entry.task}/{split}#{number}", row) for number, row in enumerate(rows))


def _shortened(value: Any, max_words: int) -> Any:
    """A text of more than `max_words` words without its middle: reviews end with their verdict."""
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
    """Raises RefusedError naming entry and field."""
    if (phrasings := _phrasings(entry)) is None:
        return None
    if entry.doc_to_choice is None:
        raise RefusedError(f"catalogue entry {entry.task!r}: phrasings: they are for choices, and it has none")
    return Phraser(entry.task, phrasings, columns=entry.columns, labels=entry.labels, choices=entry.phrased_choices)
