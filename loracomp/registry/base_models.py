"""Registers base models, and sets the database's encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from sqlalchemy import Connection as SqlalchemyConnection

from loracomp.database import schema
from loracomp.database.connections import Connection, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.database.sql_objects import set_aside
from loracomp.errors import NotFoundError, RefusedError
from loracomp.model.encoder import Encoder, load_encoder
from loracomp.model.loading import BaseModelDescription
from loracomp.registry.library_files import EncoderPart

INDEXABLE = 4000
"""The most dimensions that a halfvec may have in pgvector's HNSW index."""


@dataclass(frozen=True, slots=True)
class RegisteredBaseModel:
    """A row of base_model: adapters are checked against it."""

    id: int
    name: str
    source: str
    revision: str | None
    fingerprint: str
    modules: Mapping[str, tuple[int, int]]
    """Every module that an adapter may change: name -> (d_out, d_in)."""


def register_base_model(connection: Connection, model: BaseModelDescription, *, make_default: bool = False) -> int:
    """Register a base model under its name; returns its id. The first one becomes the default.

    Raises psycopg's RaiseException (`translated_errors` makes it RefusedError) if the name belongs to other weights.
    """
    values = {
        "name": model.name,
        "source": model.source,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "architecture": model.architecture,
        "context_length": model.context_length,
        "parameter_count": model.parameter_count,
        "modules": Jsonb(model.modules),
        "make_default": make_default,
        "has_chat_template": model.has_chat_template,
    }
    with translated_errors():
        row = connection.execute(QUERIES["register_base_model"], values).fetchone()
    assert row
    return int(row["id"])


def find_base_model(connection: Connection, name: str | None = None) -> RegisteredBaseModel:
    """The registered base model with this name, or the default one if no name is given. Raises NotFoundError."""
    with translated_errors():
        row = connection.execute(QUERIES["find_base_model"], {"name": name}).fetchone()
    assert row
    modules = {module: (int(shape[0]), int(shape[1])) for module, shape in row["modules"].items()}
    return RegisteredBaseModel(row["id"], row["name"], row["source"], row["revision"], row["fingerprint"], modules)


def set_encoder(url: str, encoder: Encoder) -> dict[str, tuple[int, int]]:
    """Make `encoder` the database's encoder, in one transaction. If the old one differs, all embeddings are removed.

    If the length of its vectors differs, the column's type changes and the objects of sql/ are dropped and created
    again, which only the owner may do. Returns for each task how many embeddings were removed, and how many of those
    cannot be made again because the example has no text; `embed_examples` makes the others. Running workers stop with
    an error that says why, and must be started again. Raises RefusedError if the encoder's vectors are too long for an
    index.
    """
    if encoder.dimensions > INDEXABLE:
        raise RefusedError(
            f"encoder {encoder.name} gives vectors of {encoder.dimensions} dimensions, for prompt, choices and shape "
            f"together; an index holds at most {INDEXABLE}: choose an encoder with fewer dimensions"
        )
    with translated_errors(), schema.installing(url) as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        rows = _resize(connection, driver, encoder)
        rows += driver.cursor(row_factory=dict_row).execute(QUERIES["set_encoder"], _values(encoder)).fetchall()
    return {row["task"]: (row["removed"], row["without_text"]) for row in rows}


def _resize(
    connection: SqlalchemyConnection, driver: psycopg.Connection[Any], encoder: Encoder
) -> list[dict[str, Any]]:
    """If the encoder's vectors have another length, empty the embedding table and change its column's type.

    Returns the rows of `clear_embeddings`, or an empty list if nothing was to do.
    """
    cursor = driver.cursor(row_factory=dict_row)
    if cursor.execute(QUERIES["embedding_dimensions"]).fetchall() == [{"dimensions": encoder.dimensions}]:
        return []
    removed = cursor.execute(QUERIES["clear_embeddings"]).fetchall()
    # Postgres refuses to change the type of a column that functions name in their bodies.
    with set_aside(connection):
        # ALTER TABLE takes no parameters, so this cursor writes the number into the statement's text.
        psycopg.ClientCursor(driver).execute(QUERIES["resize_embeddings"], {"dimensions": encoder.dimensions})
    return removed


def _values(encoder: Encoder) -> dict[str, Any]:
    return {
        "name": encoder.name,
        "source": encoder.source,
        "revision": encoder.revision,
        "fingerprint": encoder.fingerprint,
        "dimensions": encoder.dimensions,
        "input_version": encoder.input_version,
    }


def load_registered_encoder(connection: Connection, device: str = "cpu") -> Encoder:
    """Load the database's encoder from its source.

    Raises NotFoundError if the database has none, and RefusedError if the source gives another model now.
    """
    row = _encoder_row(connection)
    encoder = load_encoder(row["source"], revision=row["revision"], device=device)
    check_encoder(connection, encoder)
    return encoder


def check_encoder(connection: Connection, encoder: Encoder | EncoderPart) -> None:
    """Raise RefusedError unless this is the database's encoder with the same input version.

    Similarities between vectors of two encoders mean nothing, and Postgres notices only a different length. Raises
    NotFoundError if the database has no encoder.
    """
    row = _encoder_row(connection)
    if (row["fingerprint"], row["input_version"]) != (encoder.fingerprint, encoder.input_version):
        raise RefusedError(
            f"encoder {encoder.name} ({encoder.dimensions} dimensions, fingerprint {encoder.fingerprint[:12]}, input "
            f"version {encoder.input_version}) is not this database's: that is {row['name']} ({row['dimensions']} "
            f"dimensions, fingerprint {row['fingerprint'][:12]}, input version {row['input_version']}); use the "
            f"database's encoder, or change it to {encoder.name} with `loracomp encoder set`"
        )


def _encoder_row(connection: Connection) -> dict[str, Any]:
    with translated_errors():
        row = connection.execute(QUERIES["show_encoder"]).fetchone()
    if row is None:
        raise NotFoundError("the database has no encoder: set one with `loracomp encoder set SOURCE`")
    return row
