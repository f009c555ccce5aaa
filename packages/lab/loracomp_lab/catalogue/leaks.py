"""Finds leaks: train rows whose text is also in a validation split of the same task or of another one.

Several datasets share a source (sst2 and rotten_tomatoes have the same reviews), so a train row of one may give away an
answer in the validation split of another. The columns that make up the prompt are compared rather than the prompts,
because each task's template words them differently.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loracomp.registry.examples import Example
from loracomp_lab.catalogue import Entry, entry_names, load_entry, read_inputs

NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
SHORTEST_SHARED = 20
"""Minimum number of characters for a text to count as shared; a shorter text may be just a word or a label."""


@dataclass(frozen=True, slots=True)
class Leaks:
    """Texts that a task's train split shares with validation splits."""

    source_refs: frozenset[str]
    """References of train rows whose texts are all in one validation row. They must not be used for training or
    retrieval."""
    sharing: int
    """Number of other train rows that have a text (a premise, a passage) in common with a validation row. One such text
    does not give away the answer."""
    compared_with: tuple[str, ...]
    """Tasks whose validation splits were compared."""


@dataclass(frozen=True, slots=True)
class _Texts:
    whole: frozenset[tuple[str, ...]]
    parts: frozenset[str]


def find_leaks(entry: Entry, data: str | None = None) -> Leaks:
    """Compare an entry's train rows with its own validation split and with the validation splits of other catalogue
    entries.

    `data` is as for `read_examples`. If it is a folder, its sibling folders that are named like catalogue entries hold
    the other entries' data. Case, spaces and punctuation are ignored. A train row with several texts (a premise and a
    hypothesis) leaks only if one validation row has all of them, because the hypotheses of one premise have different
    answers.
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


def leaks_among(task: str, train: Iterable[Example], others: Iterable[Example]) -> Leaks:
    """Compare the prompts and choices of a task's train examples with those of its other splits, in the way in which
    `find_leaks` compares texts."""
    told = set(map(_shown, others))
    leaking = frozenset(example.source_ref for example in train if _shown(example) in told)
    return Leaks(leaking, 0, (task,) if told else ())


def _shown(example: Example) -> tuple[str, ...]:
    return _key((example.prompt, *(example.choices or ())))


def _splits(entry: Entry, data: str | None) -> Iterator[tuple[Entry, str | None]]:
    """Yield the entry itself and all other entries whose validation split can be read, each with its `data`."""
    folder = Path(data).expanduser() if data else None
    if folder is None or not folder.is_dir():
        yield entry, data
        return
    others = {name: folder.resolve().parent / name for name in entry_names() if name != entry.task}
    for name, at in {entry.task: folder, **others}.items():
        if (at / "validation.jsonl").is_file():
            yield entry if at is folder else load_entry(name), str(at)


@cache
def _validation_texts(entry: str, data: str | None) -> _Texts:
    """Return the texts of an entry's validation split. They are cached, because each task of a library is compared with
    them."""
    rows = read_inputs(Entry.model_validate_json(entry), "validation", data)
    keys = frozenset(_key(inputs) for _, inputs in rows)
    return _Texts(keys, frozenset(part for key in keys for part in key if len(part) >= SHORTEST_SHARED))


def _key(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Return only the letters and digits of the texts, in lower case; the texts are sorted, because datasets order
    their columns differently."""
    texts = (NOT_ALPHANUMERIC.sub("", text.lower()) for text in inputs)
    return tuple(sorted(filter(None, texts)))
