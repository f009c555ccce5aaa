"""Leaks: train rows whose text stands in a split that figures are reported on, of their own task or of another.

Tasks come from one source (sst2 and rotten_tomatoes are the same reviews), so a row that is fine in its own dataset may
give away an answer of another's validation split. Compared are the columns that make the prompt, not the prompt: other
tasks word it otherwise.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loracomp.lab.catalogue import Entry, entry_names, load_entry, read_inputs

NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
SHORTEST_SHARED = 20
"""Characters of a text that counts as shared when it stands alone: a shorter one may be a word or a label."""


@dataclass(frozen=True, slots=True)
class Leaks:
    """What a task's train split has in common with validation splits."""

    source_refs: frozenset[str]
    """Rows all of whose texts stand together in a validation row: not to be learnt from, nor to be retrieved."""
    sharing: int
    """Other rows one of whose texts (a premise, a passage) stands in a validation row: it doesn't tell the answer."""
    compared_with: tuple[str, ...]
    """Tasks whose validation splits were at hand."""


@dataclass(frozen=True, slots=True)
class _Texts:
    whole: frozenset[tuple[str, ...]]
    parts: frozenset[str]


def find_leaks(entry: Entry, data: str | None = None) -> Leaks:
    """Compare an entry's train rows with its own validation split and with those of other catalogue entries.

    `data` is as for `read_examples`. If it is a folder, its sibling folders that are named like catalogue entries hold
    the other entries' data. Case, spaces and punctuation are ignored. A train row with several texts (a premise and a
    hypothesis) leaks only if one validation row has all of them: hypotheses of one premise have different answers.
    """
    texts = {other.task: _validation_texts(other.model_dump_json(), folder) for other, folder in _splits(entry, data)}
    leaking, sharing = set(), 0
    for source_ref, inputs in read_inputs(entry, "train", data):
        key = _key(inputs)
        if any(key in split.whole for split in texts.values()):
            leaking.add(source_ref)
        else:
            sharing += any(part in split.parts for split in texts.values() for part in key)
    return Leaks(frozenset(leaking), sharing, tuple(sorted(texts)))


def _splits(entry: Entry, data: str | None) -> Iterator[tuple[Entry, str | None]]:
    """The entry itself and the others whose validation split can be read, each with its data."""
    folder = Path(data).expanduser() if data else None
    if folder is None or not folder.is_dir():
        yield entry, data
        return
    others = [(load_entry(name), folder.resolve().parent / name) for name in entry_names() if name != entry.task]
    for other, at in [(entry, folder), *others]:
        if (at / "validation.jsonl").is_file():
            yield other, str(at)


@cache
def _validation_texts(entry: str, data: str | None) -> _Texts:
    """Texts of the validation split of an entry (its JSON), kept: every task of a library is compared with it."""
    rows = read_inputs(Entry.model_validate_json(entry), "validation", data)
    keys = frozenset(_key(inputs) for _, inputs in rows)
    return _Texts(keys, frozenset(part for key in keys for part in key if len(part) >= SHORTEST_SHARED))


def _key(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Texts in lower case without anything but letters and digits; in one order, for columns' names differ."""
    texts = (NOT_ALPHANUMERIC.sub("", text.lower()) for text in inputs)
    return tuple(sorted(filter(None, texts)))
