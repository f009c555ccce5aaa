"""The database's encoder, and embeddings of train examples: computed with it, or taken from a library."""

import time
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loracomp.database.connections import Connection, row_of, rows_of, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, RefusedError
from loracomp.model.encoder import Encoder, load_encoder
from loracomp.registry.library_files import EncoderPart

EMBEDDED_TOGETHER = 64
"""Number of examples that are embedded and stored together. This takes about a second, so a killed import loses only a
second of work."""
COUNTED_EACH_S = 10
"""Seconds between two counts of the remaining examples, because other processes embed too."""
ADDED_TOGETHER = 4096
"""Number of embeddings sent in one statement, about 14 MB."""

Vectors = npt.NDArray[np.float32]
Encoded: TypeAlias = tuple[Vectors, dict[int, str]]
"""Unit vectors [n, dimensions], and an error, by id, for each example on which the encoder failed."""
EncoderKey: TypeAlias = Mapping[str, Any]
"""An encoder's identity and input version (`encoder_key`)."""
ANY_ENCODER: EncoderKey = {"encoder": None, "input_version": None}
Ask: TypeAlias = Callable[[str, Mapping[str, Any]], list[dict[str, Any]]]
"""Sends a statement with its values; returns the rows."""


class Batch(NamedTuple):
    """Examples that were embedded together."""

    taken: list[int]
    """Their ids, in order. Examples between them may not have been drawn, so the next batch is drawn from all examples
    after the first."""
    failed: dict[int, str]
    """An error, by id, for each example on which the encoder failed."""
    added: int
    """Number of embeddings that were stored. Another process may have been first."""


def load_registered_encoder(connection: Connection, device: str = "cpu") -> Encoder:
    """Load the database's encoder from its source.

    Raises NotFoundError if the database has no encoder, and RefusedError if the source now provides a different model.
    """
    row = _encoder_row(connection)
    encoder = load_encoder(row["source"], revision=row["revision"], device=device)
    check_encoder(connection, encoder)
    return encoder


def check_encoder(connection: Connection, encoder: Encoder | EncoderPart) -> EncoderKey:
    """Return the key of the database's encoder. Raises RefusedError unless it is this one, with the same input version
    and settings.

    Similarities between vectors of different encoders mean nothing, but Postgres notices only a different length.
    Raises NotFoundError if the database has no encoder.
    """
    row = _encoder_row(connection)
    if is_encoder(row, encoder):
        return {"encoder": row["identity"], "input_version": row["input_version"]}
    if (row["fingerprint"], row["input_version"]) == (encoder.fingerprint, encoder.input_version):
        raise RefusedError(
            f"encoder {encoder.name} has other settings or another tokenizer here than when it was set (its weights "
            "are the same): use the same files, or set it again with `loracomp encoder set`, which embeds all examples "
            "again"
        )
    raise RefusedError(
        f"encoder {encoder.name} ({encoder.dimensions} dimensions, fingerprint {encoder.fingerprint[:12]}, input "
        f"version {encoder.input_version}) is not this database's: that is {row['name']} ({row['dimensions']} "
        f"dimensions, fingerprint {row['fingerprint'][:12]}, input version {row['input_version']}); use the "
        f"database's encoder, or change it to {encoder.name} with `loracomp encoder set`"
    )


def is_encoder(row: Mapping[str, Any], encoder: Encoder | EncoderPart) -> bool:
    """Whether the row of `show_encoder` describes this encoder."""
    return bool((row["identity"], row["input_version"]) == (encoder.identity, encoder.input_version))


def _encoder_row(connection: Connection) -> dict[str, Any]:
    if rows := rows_of(connection, QUERIES["show_encoder"]):
        return rows[0]
    raise NotFoundError("the database has no encoder: set one with `loracomp encoder set SOURCE`")


def embed_examples(connection: Connection, encoder: Encoder, task: str | None = None) -> int:
    """Embed train examples that have no embedding, of one task or of all. Shows a progress bar and returns their
    number.

    Each batch is stored as soon as it is embedded, so a killed run can be started again and continues. Any number of
    processes may run at the same time: each draws its batches, so that they seldom embed the same examples, and returns
    when all are embedded.
    Raises RefusedError unless `encoder` is the database's.
    """
    check_encoder(connection, encoder)
    done = embed_missing(connection, encoder, task)
    tune_routing(connection)
    return done


def embed_missing(connection: Connection, encoder: Encoder, task: str | None = None) -> int:
    """Do as `embed_examples`, but without checking the encoder and without tuning."""

    def ask(statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        return connection.execute(statement, values).fetchall()

    done = after = 0
    failed: dict[int, str] = {}
    counted = float("-inf")
    with translated_errors(), progress_bar() as progress:
        line = progress.add_task("embedding", total=None)
        while True:
            taken, refused, added = embed_some(ask, encoder, task, after=after, most=EMBEDDED_TOGETHER)
            failed |= refused
            done += added
            if not taken or perf_counter() - counted > COUNTED_EACH_S:
                left = _count_unembedded(connection, task) - len(failed)
                counted = perf_counter()
                progress.update(line, total=done + left, visible=done + left > 0)
                if left <= 0:
                    break
            progress.update(line, completed=done)
            if not taken:
                time.sleep(0.1)  # the rest may be locked
            after = taken[0] if taken else 0
        progress.update(line, completed=done)
    for example_id, error in failed.items():
        raise RefusedError(
            f"example {example_id} and {len(failed) - 1} others have no embedding, because the encoder fails: {error}; "
            "all others are embedded. Delete these examples with loracomp.erase_example, or change their text"
        )
    return done


def encoder_key(encoder: Encoder) -> EncoderKey:
    """Identity and input version, by which SQL functions tell an encoder from others."""
    return {"encoder": encoder.identity, "input_version": encoder.input_version}


def embed_some(
    ask: Ask,
    encoder: Encoder,
    task: str | None = None,
    *,
    after: int = 0,
    most: int,
    compute: Callable[[Callable[[], Encoded]], Encoded] = lambda encode: encode(),
) -> Batch:
    """Embed at most `most` of the examples without an embedding and with larger ids than `after`.

    `ask` sends a statement; `compute` runs the encoder, while nothing is locked. If the text of an example is changed
    meanwhile, its embedding is not stored.
    """
    values = {**encoder_key(encoder), "task": task, "after": after, "max_examples": most}
    rows = ask(QUERIES["draw_unembedded"], values)
    if not rows:
        return Batch([], {}, 0)
    vectors, failed = compute(lambda: encode_each(encoder, rows))
    good = [row for row in rows if row["example_id"] not in failed]
    given = {
        "example_ids": [row["example_id"] for row in good],
        "text_hashes": [row["text_hash"] for row in good],
        "embeddings": list(vectors),
    }
    added = ask(QUERIES["add_embeddings"], {**encoder_key(encoder), **given})[0]["added"] if good else 0
    return Batch([row["example_id"] for row in rows], failed, added)


def encode_each(encoder: Encoder, rows: Sequence[Mapping[str, Any]]) -> Encoded:
    """Encode examples together, or, if that fails, each alone, so that a bad one holds up no other.

    Returns the unit vectors [n, dimensions] of the examples that the encoder can encode, and the errors of all others
    by id.
    """
    try:
        vectors = encoder.encode([(row["prompt"], row["choices"]) for row in rows])
        if np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            return vectors, {}
        error = "it is no unit vector"
    except Exception as raised:
        error = str(raised) or repr(raised)
    if len(rows) == 1:
        return np.empty((0, encoder.dimensions), np.float32), {rows[0]["example_id"]: error}
    alone = [encode_each(encoder, [row]) for row in rows]
    return np.concatenate([vectors for vectors, _ in alone]), {
        key: told for _, each in alone for key, told in each.items()
    }


def _count_unembedded(connection: Connection, task: str | None) -> int:
    return int(row_of(connection, QUERIES["count_unembedded"], {"task": task})["unembedded"])


def progress_bar(console: Console | None = None) -> Progress:
    """Show a progress bar with count and remaining time, on stderr or on the console that also prints remarks.

    Without a terminal it prints one line at the end.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console or Console(stderr=True))


def load_embeddings(
    connection: Connection,
    rows: Sequence[Mapping[str, Any]],
    vectors: Vectors,
    made_by: EncoderKey = ANY_ENCODER,
) -> None:
    """Store many embeddings in one transaction, as `add_embeddings` does; the index is rebuilt if that is faster."""
    if rows:
        with translated_errors(), connection.transaction():
            dropped = row_of(connection, QUERIES["drop_embedding_index"], {"incoming": len(rows)})["dropped"]
            for start in range(0, len(rows), ADDED_TOGETHER):
                part = slice(start, start + ADDED_TOGETHER)
                add_embeddings(connection, rows[part], vectors[part], made_by)
            if dropped:
                row_of(connection, QUERIES["build_embedding_index"])
    tune_routing(connection)


def index_embeddings(connection: Connection) -> None:
    """Rebuild the index over rows that are sorted by task; jobs wait for it."""
    with translated_errors():
        connection.execute(QUERIES["end_with_the_client"])
        row_of(connection, QUERIES["build_embedding_index"])
    tune_routing(connection)


def add_embeddings(
    connection: Connection,
    rows: Sequence[Mapping[str, Any]],
    vectors: Vectors,
    made_by: EncoderKey = ANY_ENCODER,
) -> int:
    """Store unit vectors [n, dimensions] of n examples (rows with example_id).

    Returns how many were stored; an example that has an embedding keeps it. Raises SchemaMismatchError if the database
    has another encoder than the one that made them.
    """
    given = {"example_ids": [row["example_id"] for row in rows], "embeddings": list(vectors), "text_hashes": None}
    return int(row_of(connection, QUERIES["add_embeddings"], {**made_by, **given})["added"])


def tune_routing(connection: Connection) -> None:
    """Adjust routing's index settings to the number of embeddings; call this after embeddings were added or removed."""
    row_of(connection, QUERIES["tune_routing"])
