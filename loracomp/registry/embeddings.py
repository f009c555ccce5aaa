"""Stores embeddings of train examples, computed with the database's encoder or taken from a library."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loracomp.database.connections import Connection, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.model.encoder import Encoder
from loracomp.registry.base_models import check_encoder

EMBEDDED_TOGETHER = 256
"""Examples embedded and stored in one transaction. A killed import loses at most this many: a few seconds' work."""
ADDED_TOGETHER = 4096
"""Embeddings sent in one statement, about 14 MB."""

Vectors = npt.NDArray[np.float32]


def embed_examples(connection: Connection, encoder: Encoder, task: str | None = None) -> int:
    """Embed the train examples without an embedding, of one task or of all; shows a progress bar, returns their number.

    Each batch is stored as soon as it is embedded, so a killed run can be started again and continues. If another
    import embeds the same examples at the same time, each is stored once, and a line on stderr says so.
    Raises RefusedError unless `encoder` is the database's.
    """
    check_encoder(connection, encoder)
    done = others = 0
    with progress_bar() as progress:
        line = progress.add_task("embedding", total=None)
        while rows := _unembedded(connection, task):
            progress.update(line, total=done + rows[0]["remaining"])
            added = add_embeddings(connection, rows, encoder.encode([(r["prompt"], r["choices"]) for r in rows]))
            done += added
            others += len(rows) - added
            progress.update(line, completed=done)
    if others:
        progress.console.print(f"another import ran at the same time and embedded {others} of these examples")
    tune_routing(connection)
    return done


def progress_bar() -> Progress:
    """A progress bar on stderr with count and remaining time. Without a terminal it prints one line at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def load_embeddings(connection: Connection, rows: Sequence[Mapping[str, Any]], vectors: Vectors) -> None:
    """Like `add_embeddings`, for many rows in one transaction; the index is built anew if that is faster."""
    if rows:
        with translated_errors(), connection.transaction():
            row = connection.execute(QUERIES["drop_embedding_index"], {"incoming": len(rows)}).fetchone()
            for start in range(0, len(rows), ADDED_TOGETHER):
                part = slice(start, start + ADDED_TOGETHER)
                add_embeddings(connection, rows[part], vectors[part])
            if row and row["dropped"]:
                connection.execute(QUERIES["build_embedding_index"])
    tune_routing(connection)


def add_embeddings(connection: Connection, rows: Sequence[Mapping[str, Any]], vectors: Vectors) -> int:
    """Store unit vectors [n, dimensions] of n examples (rows with example_id).

    Returns how many were stored; an example that has an embedding keeps it.
    """
    values = {"example_ids": [row["example_id"] for row in rows], "embeddings": list(vectors)}
    with translated_errors():
        row = connection.execute(QUERIES["add_embeddings"], values).fetchone()
    assert row
    return int(row["added"])


def tune_routing(connection: Connection) -> None:
    """Adjust routing's index settings to the number of embeddings; call this after embeddings were added or removed."""
    with translated_errors():
        connection.execute(QUERIES["tune_routing"])


def _unembedded(connection: Connection, task: str | None) -> list[dict[str, Any]]:
    with translated_errors():
        values = {"task": task, "max_examples": EMBEDDED_TOGETHER}
        return connection.execute(QUERIES["unembedded_examples"], values).fetchall()
