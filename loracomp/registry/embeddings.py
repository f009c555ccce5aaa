"""Embeddings of train examples: made with the database's encoder, or brought by a library."""

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
"""Stored together, so lost together if killed: a few seconds' work."""
ADDED_TOGETHER = 4096
"""Sent in one statement: some 14 MB."""

Vectors = npt.NDArray[np.float32]


def embed_examples(connection: Connection, encoder: Encoder, task: str | None = None) -> int:
    """Embed the train examples that lack it, of one task or of all, with a progress bar; how many they were.

    Each batch is stored as soon as it is embedded: killed and run again, it goes on from there. Where another import
    embeds the same examples at the same time, each is stored once, and a line on stderr says so.
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
        progress.console.print(f"another import ran at the same time: it had embedded {others} of these examples")
    tune_routing(connection)
    return done


def progress_bar() -> Progress:
    """A bar on stderr with count and remaining time; on no terminal, one line at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def load_embeddings(connection: Connection, rows: Sequence[Mapping[str, Any]], vectors: Vectors) -> None:
    """Store many embeddings at once, all or none, like `add_embeddings`; rebuilds the index where that is faster."""
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
    """Store unit vectors [n, dimensions] of n examples (rows with example_id); of how many that had none yet."""
    values = {"example_ids": [row["example_id"] for row in rows], "embeddings": list(vectors)}
    with translated_errors():
        row = connection.execute(QUERIES["add_embeddings"], values).fetchone()
    assert row
    return int(row["added"])


def tune_routing(connection: Connection) -> None:
    """Fit routing to the number of embeddings; for after they have changed."""
    with translated_errors():
        connection.execute(QUERIES["tune_routing"])


def _unembedded(connection: Connection, task: str | None) -> list[dict[str, Any]]:
    with translated_errors():
        values = {"task": task, "max_examples": EMBEDDED_TOGETHER}
        return connection.execute(QUERIES["unembedded_examples"], values).fetchall()
