"""Adds tasks, and imports their examples."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, row_of, rows_of, storable
from loracomp.database.queries import QUERIES
from loracomp.errors import RefusedError
from loracomp.registry.examples import Example

ROWS_TOGETHER = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The outcome of an import: how many rows were added, changed or left out."""

    counts: Mapping[str, int]
    """Rows by outcome: added, filled (a library's example got its text), changed (its text), unchanged, other_split."""
    other_split: Sequence[tuple[str, str, str]] = ()
    """Rows that another split of the task already contains: source_ref, split, and the split that is stored."""


def add_task(
    connection: Connection, name: str, *, family: str = "other", description: str = "", reader_role: str | None = None
) -> bool:
    """Add a task. Returns False and changes nothing if the name exists. Raises NotFoundError for an unknown role."""
    values = {"name": name, "family": family, "description": description, "reader_role": reader_role}
    return bool(row_of(connection, QUERIES["add_task"], values)["added"])


def import_examples(connection: Connection, task: str, examples: Iterable[Example]) -> ImportReport:
    """Store a task's examples. An example is identified by its content_hash, so importing the same rows again changes
    nothing.

    An example that a library shipped without its text gets its text. `embeddings.embed_examples` embeds the examples
    afterwards. Raises RefusedError, which names the row, if Postgres can't store it, and NotFoundError for an unknown
    task.
    """
    rows = [_row(example) for example in examples]
    counts: Counter[str] = Counter()
    other_split = []
    for start in range(0, len(rows), ROWS_TOGETHER):
        batch = rows[start : start + ROWS_TOGETHER]
        for row, result in zip(batch, add_rows(connection, task, batch), strict=True):
            counts[result["outcome"]] += 1
            if result["outcome"] == "other_split":
                other_split.append((row["source_ref"], row["split"], result["stored_split"]))
    return ImportReport(dict(counts), other_split)


def add_rows(connection: Connection, task: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Call loracomp.add_examples once; returns for each row its outcome and the split in which it is stored."""
    return rows_of(connection, QUERIES["add_examples"], {"task": task, "examples": Jsonb(rows)})


def draw(rows: Iterable[T], limit: int | None, seed: int = 0) -> list[T]:
    """All rows, or `limit` rows drawn at random with `seed`; their order is kept."""
    listed = list(rows)
    if limit is None or limit >= len(listed):
        return listed
    chosen = sorted(random.Random(seed).sample(range(len(listed)), limit))  # noqa: S311  reproducible, not secret
    return [listed[number] for number in chosen]


def _row(example: Example) -> dict[str, Any]:
    texts = (example.prompt, *(example.choices or ()), example.label)
    if any(storable(text) != text for text in texts):
        raise RefusedError(f"row {example.source_ref}: contains a NUL character or half a surrogate pair: remove it")
    return asdict(example) | {"content_hash": example.content_hash.hex()}
