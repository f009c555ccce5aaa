"""Tasks and their examples."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import RefusedError
from loracomp.registry.examples import Example

ROWS_TOGETHER = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OtherSplit:
    """A row that was left alone, for it stands in another split of its task."""

    source_ref: str
    split: str
    stored_split: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of the rows of an import."""

    counts: Mapping[str, int]
    """added, filled (a library's example got its text), changed (text), unchanged, other_split."""
    other_split: Sequence[OtherSplit] = ()


def add_task(
    connection: Connection, name: str, *, family: str = "other", description: str = "", reader_role: str | None = None
) -> bool:
    """Add a task; False, and nothing changed, where the name is taken. Raises NotFoundError for an unknown role."""
    values = {"name": name, "family": family, "description": description, "reader_role": reader_role}
    with translated_errors():
        row = connection.execute(QUERIES["add_task"], values).fetchone()
    assert row
    return bool(row["added"])


def import_examples(connection: Connection, task: str, examples: Iterable[Example]) -> ImportReport:
    """Store examples in batches, each known by its content_hash, so that running it again changes nothing.

    An example that a library shipped without its text gets it. Embeddings: `embeddings.embed_examples`.
    Raises RefusedError naming the row that Postgres can't hold, NotFoundError for an unknown task.
    """
    rows = [_row(example) for example in examples]
    counts: Counter[str] = Counter()
    other_split: list[OtherSplit] = []
    for start in range(0, len(rows), ROWS_TOGETHER):
        batch = rows[start : start + ROWS_TOGETHER]
        for row, result in zip(batch, add_rows(connection, task, batch), strict=True):
            counts[result["outcome"]] += 1
            if result["outcome"] == "other_split":
                other_split.append(OtherSplit(row["source_ref"], row["split"], result["stored_split"]))
    return ImportReport(dict(counts), other_split)


def add_rows(connection: Connection, task: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One call of loracomp.add_examples: for each row its outcome and the split that it stands in."""
    with translated_errors():
        return connection.execute(QUERIES["add_examples"], {"task": task, "examples": Jsonb(rows)}).fetchall()


def draw(rows: Iterable[T], limit: int | None, seed: int = 0) -> list[T]:
    """All rows, or `limit` of them drawn at random by `seed`, in their order."""
    listed = list(rows)
    if limit is None or limit >= len(listed):
        return listed
    places = sorted(random.Random(seed).sample(range(len(listed)), limit))  # noqa: S311  reproducible, not secret
    return [listed[place] for place in places]


def _row(example: Example) -> dict[str, Any]:
    texts = (example.prompt, *(example.choices or ()), example.answer)
    if any("\0" in text or not _is_unicode(text) for text in texts):
        raise RefusedError(f"row {example.source_ref}: holds a NUL character or half a surrogate pair; remove it")
    return {
        "split": example.split,
        "prompt": example.prompt,
        "choices": example.choices,
        "answer": example.answer,
        "source_ref": example.source_ref,
        "content_hash": example.content_hash.hex(),
        "hash_version": example.hash_version,
    }


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
