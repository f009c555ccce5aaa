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

Vectors = npt.NDArray[np.float32]


def embed_examples(connection: Connection, encoder: Encoder, task: str | None = None) -> int:
    """Embed the train examples that lack it, of one task or of all, with a progress bar; how many they were.

    Each batch is stored by binary COPY as soon as it is embedded: killed and run again, it goes on from there.
    Raises RefusedError unless `encoder` is the database's.
    """
    check_encoder(connection, encoder)
    done = 0
    with progress_bar() as progress:
        line = progress.add_task("embedding", total=None)
        while rows := _unembedded(connection, task):
            progress.update(line, total=done + rows[0]["remaining"])
            copy_embeddings(connection, rows, encoder.encode([(r["prompt"], r["choices"]) for r in rows]))
            done += len(rows)
            progress.update(line, completed=done)
    tune_routing(connection)
    return done


def progress_bar() -> Progress:
    """A bar on stderr with count and remaining time; on no terminal, one line at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def load_embeddings(connection: Connection, rows: Sequence[Mapping[str, Any]], vectors: Vectors) -> None:
    """Store many embeddings at once, all or none; the index is built anew where that is faster."""
    if rows:
        with translated_errors(), connection.transaction():
            row = connection.execute(QUERIES["drop_embedding_index"], {"incoming": len(rows)}).fetchone()
            copy_embeddings(connection, rows, vectors)
            if row and row["dropped"]:
                connection.execute(QUERIES["build_embedding_index"])
    tune_routing(connection)


def copy_embeddings(connection: Connection, rows: Sequence[Mapping[str, Any]], vectors: Vectors) -> None:
    """Store unit vectors [n, dimensions] of n examples (rows with example_id and task_id), all or none."""
    statement = "COPY loracomp.example_embedding (example_id, task_id, embedding) FROM STDIN (FORMAT binary)"
    with translated_errors(), connection.cursor().copy(statement) as copy:
        copy.set_types(["int8", "int4", "vector"])
        for row, vector in zip(rows, vectors, strict=True):
            copy.write_row((row["example_id"], row["task_id"], vector))


def tune_routing(connection: Connection) -> None:
    """Fit routing to the number of embeddings; for after they have changed."""
    with translated_errors():
        connection.execute(QUERIES["tune_routing"])


def _unembedded(connection: Connection, task: str | None) -> list[dict[str, Any]]:
    with translated_errors():
        values = {"task": task, "max_examples": EMBEDDED_TOGETHER}
        return connection.execute(QUERIES["unembedded_examples"], values).fetchall()
