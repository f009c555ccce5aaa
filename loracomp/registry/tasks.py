"""Tasks and their examples, stored and embedded. What is killed half-way goes on where it stopped."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loracomp.catalogue import Example
from loracomp.db import Connection, translated_errors
from loracomp.encoding import encoder_input
from loracomp.errors import RefusedError
from loracomp.queries import QUERIES
from loracomp.registry.base_models import check_encoder
from loracomp.registry.models import Encoder

ROWS_TOGETHER = 1000
EMBEDDED_TOGETHER = 256
"""Stored together, so lost together if killed: a few seconds' work."""

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

    An example that a library shipped without its text gets it. Embeddings: `embed_examples`.
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


def embed_examples(connection: Connection, encoder: Encoder, task: str | None = None) -> int:
    """Embed the train examples that lack it, of one task or of all, with a progress bar; how many they were.

    Each batch is stored by binary COPY as soon as it is embedded. Raises RefusedError unless `encoder` is the
    database's.
    """
    check_encoder(connection, name=encoder.name, fingerprint=encoder.fingerprint, dimensions=encoder.dimensions)
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        line = progress.add_task("embedding", total=None)
        while rows := _unembedded(connection, task):
            progress.update(line, total=done + rows[0]["remaining"])
            vectors = encoder.encode([encoder_input(row["prompt"], row["choices"]) for row in rows])
            copy_embeddings(connection, rows, vectors)
            done += len(rows)
            progress.update(line, completed=done)
    tune_routing(connection)
    return done


def copy_embeddings(
    connection: Connection, rows: Sequence[Mapping[str, Any]], vectors: npt.NDArray[np.float32]
) -> None:
    """Store unit vectors [n, dimensions] of examples (rows with example_id and task_id), all or none of them."""
    statement = "COPY loracomp.example_embedding (example_id, task_id, embedding) FROM STDIN (FORMAT binary)"
    with translated_errors(), connection.cursor().copy(statement) as copy:
        copy.set_types(["int8", "int4", "vector"])
        for row, vector in zip(rows, vectors, strict=True):
            copy.write_row((row["example_id"], row["task_id"], vector))


def tune_routing(connection: Connection) -> None:
    """Fit routing to the number of embedded examples; call it after they have changed."""
    with translated_errors():
        connection.execute(QUERIES["tune_routing"])


def draw(rows: Iterable[T], limit: int | None, seed: int = 0) -> list[T]:
    """All rows, or `limit` of them drawn at random by `seed`, in their order."""
    listed = list(rows)
    if limit is None or limit >= len(listed):
        return listed
    places = sorted(random.Random(seed).sample(range(len(listed)), limit))  # noqa: S311  reproducible, not secret
    return [listed[place] for place in places]


def _unembedded(connection: Connection, task: str | None) -> list[dict[str, Any]]:
    with translated_errors():
        values = {"task": task, "max_examples": EMBEDDED_TOGETHER}
        return connection.execute(QUERIES["unembedded_examples"], values).fetchall()


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
