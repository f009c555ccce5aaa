"""The catalogue: one YAML file a dataset, and one reader for the hub and for folders of JSON lines.

Field names and meaning are lm-evaluation-harness's: doc_to_text is a Jinja template; doc_to_choice is a list of texts,
or one `{{ expression }}` that gives a list; doc_to_target is a column or one `{{ expression }}`, which gives the right
choice's index (from 0) or its text. An expression keeps its type: nothing is rendered to text and parsed again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from loracomp.catalogue.reading import rows_of
from loracomp.catalogue.templates import Example, Templates
from loracomp.errors import NotFoundError, RefusedError, UsageError

__all__ = ["SPLITS", "Entry", "Example", "data_note", "entry_names", "load_entry", "read_examples", "read_inputs"]

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
    return entry


def data_note(task: str, read_from: str | None) -> str | None:
    """The note of a task's entry (`Entry.data_note`) on rows that were read from a folder; None on the hub's own."""
    return load_entry(task).data_note if read_from == "folder" and task in entry_names() else None


def read_examples(entry: Entry, split: str, data: str | None = None) -> Iterator[Example]:
    """Examples of one split ('train' or 'validation'), in the dataset's order.

    `data` is a hub id or a folder of JSON lines (train.jsonl, validation.jsonl) to read instead of the entry's
    dataset_path. Rows without a gold label (-1, as on the hub) or whose choices are not distinct are left out.
    Raises UsageError, NotFoundError, or RefusedError naming entry, field and row.
    """
    templates = _templates(entry)
    for source_ref, row in _rows(entry, split, data):
        example = templates.example(row, split, source_ref)
        if example is not None:
            yield example


def read_inputs(entry: Entry, split: str, data: str | None = None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Source reference of each row of a split, and the texts that doc_to_text makes its prompt of, untouched.

    `data` and errors as of `read_examples`.
    """
    templates = _templates(entry)
    return ((source_ref, templates.inputs(row)) for source_ref, row in _rows(entry, split, data))


def _rows(entry: Entry, split: str, data: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = rows_of(data or entry.dataset_path, entry.dataset_name, split, entry.split_name(split))
    return ((f"{entry.task}/{split}#{number}", row) for number, row in enumerate(rows))


def _templates(entry: Entry) -> Templates:
    return Templates(entry.task, entry.doc_to_text, entry.doc_to_choice, entry.doc_to_target)
