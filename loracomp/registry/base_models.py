"""Registers base models, and finds the database's base model and encoder."""

from typing import Any

from psycopg.types.json import Jsonb

from loracomp.database.connections import Connection, row_of, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, RefusedError
from loracomp.model.encoder import Encoder, load_encoder
from loracomp.model.loading import BaseModelDescription, KnownBaseModel
from loracomp.registry.library_files import EncoderPart


def register_base_model(connection: Connection, model: BaseModelDescription, *, make_default: bool = False) -> int:
    """Register a base model under its name; returns its id. The first one becomes the default.

    Raises RefusedError if the name belongs to other weights.
    """
    values = vars(model) | {"modules": Jsonb(model.modules), "make_default": make_default}
    return int(row_of(connection, QUERIES["register_base_model"], values)["id"])


def find_base_model(connection: Connection, name: str | None = None) -> KnownBaseModel:
    """The registered base model with this name, or the default one if no name is given. Raises NotFoundError."""
    row = row_of(connection, QUERIES["find_base_model"], {"name": name})
    return KnownBaseModel(**row | {"modules": {module: tuple(shape) for module, shape in row["modules"].items()}})


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
    if rows := rows_of(connection, QUERIES["show_encoder"]):
        return rows[0]
    raise NotFoundError("the database has no encoder: set one with `loracomp encoder set SOURCE`")
