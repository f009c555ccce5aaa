"""Base models and the encoder in the database."""

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

INDEXABLE = 2000
"""Dimensions that pgvector's HNSW takes of a vector."""


@dataclass(frozen=True, slots=True)
class RegisteredBaseModel:
    """What adapters are checked against."""

    id: int
    name: str
    source: str
    revision: str | None
    fingerprint: str
    modules: Mapping[str, tuple[int, int]]
    """Every linear module: name -> (d_out, d_in)."""


def register_base_model(connection: Connection, model: BaseModelDescription, *, make_default: bool = False) -> int:
    """Register a base model by its name; returns its id. The first one is the default.

    Raises psycopg's RaiseException (RefusedError, translated) if the name stands for other weights.
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
    }
    with translated_errors():
        row = connection.execute(QUERIES["register_base_model"], values).fetchone()
    assert row
    return int(row["id"])


def find_base_model(connection: Connection, name: str | None = None) -> RegisteredBaseModel:
    """The registered base model of that name, or the default one. Raises NotFoundError."""
    with translated_errors():
        row = connection.execute(QUERIES["find_base_model"], {"name": name}).fetchone()
    assert row
    modules = {module: (int(shape[0]), int(shape[1])) for module, shape in row["modules"].items()}
    return RegisteredBaseModel(row["id"], row["name"], row["source"], row["revision"], row["fingerprint"], modules)


def set_encoder(url: str, encoder: Encoder) -> dict[str, tuple[int, int]]:
    """Make `encoder` the database's, in one transaction. If it differs from the one before, all embeddings are removed.

    If the length of its vectors differs, the column's type changes and sql/ is dropped and applied again, which only
    the owner may do. Returns for each task how many embeddings were removed, and how many of those cannot be made again
    because the example has no text; `embed_examples` makes the others. Running workers stop with an error that says
    why, and must be started again. Raises RefusedError if its vectors are longer than an index can hold.
    """
    if encoder.dimensions > INDEXABLE:
        raise RefusedError(
            f"encoder {encoder.name} gives vectors of {encoder.dimensions} dimensions, for prompt, choices and shape "
            f"together; an index holds at most {INDEXABLE}: choose a smaller one"
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
    """Empty the table and change its vectors' length, where it is not the encoder's; what `clear_embeddings` said."""
    cursor = driver.cursor(row_factory=dict_row)
    if cursor.execute(QUERIES["embedding_dimensions"]).fetchall() == [{"dimensions": encoder.dimensions}]:
        return []
    removed = cursor.execute(QUERIES["clear_embeddings"]).fetchall()
    # Functions whose bodies name the column would forbid the change of its type.
    with set_aside(connection):
        # Changing a table takes no parameters: this cursor writes the number into the text.
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
    """Load the database's encoder from its source. Raises NotFoundError if none is set, RefusedError if it changed."""
    row = _encoder_row(connection)
    encoder = load_encoder(row["source"], revision=row["revision"], device=device)
    check_encoder(connection, encoder)
    return encoder


def check_encoder(connection: Connection, encoder: Encoder | EncoderPart) -> None:
    """Raise RefusedError unless this is the database's encoder, with its input version; NotFoundError if none is set.

    Vectors of another encoder would be refused for their length at best, and compared with noise at worst.
    """
    row = _encoder_row(connection)
    if (row["fingerprint"], row["input_version"]) != (encoder.fingerprint, encoder.input_version):
        raise RefusedError(
            f"encoder {encoder.name} ({encoder.dimensions} dimensions, fingerprint {encoder.fingerprint[:12]}, input "
            f"version {encoder.input_version}) is not this database's: that is {row['name']} ({row['dimensions']} "
            f"dimensions, fingerprint {row['fingerprint'][:12]}, input version {row['input_version']}); use that one, "
            "or make this one the database's with `loracomp encoder set`"
        )


def _encoder_row(connection: Connection) -> dict[str, Any]:
    with translated_errors():
        row = connection.execute(QUERIES["show_encoder"]).fetchone()
    if row is None:
        raise NotFoundError("the database has no encoder: set one with `loracomp encoder set SOURCE`")
    return row
