"""Loads the database's encoder, and checks that an encoder is it."""

from typing import TYPE_CHECKING, Any

from loracomp.database.connections import Connection, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, RefusedError
from loracomp.model.encoder import Encoder, load_encoder

if TYPE_CHECKING:
    from loracomp.registry.library_files import EncoderPart


def load_registered_encoder(connection: Connection, device: str = "cpu") -> Encoder:
    """Load the database's encoder from its source.

    Raises NotFoundError if the database has none, and RefusedError if the source gives another model now.
    """
    row = _encoder_row(connection)
    encoder = load_encoder(row["source"], revision=row["revision"], device=device)
    check_encoder(connection, encoder)
    return encoder


def check_encoder(connection: Connection, encoder: "Encoder | EncoderPart") -> None:
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
