"""Changes the database's encoder: embeds all examples by the new one beside the old one, which then gives way to it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from loracomp.database import schema
from loracomp.database.connections import Connection, connect, rows_of, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.model.encoder import Encoder
from loracomp.registry.embeddings import embed_missing

Counts = Mapping[str, int]
_log = logging.getLogger(__name__)


def set_encoder(url: str, encoder: Encoder, confirm: Callable[[Counts], None] = lambda _: None) -> Counts | None:
    """Make `encoder` the database's encoder; only the schema's owner may.

    If there are embeddings that it must make again, the old encoder answers jobs and takes imports until all examples
    with a text are embedded in a second table; the two tables are then exchanged in a short transaction. If the process
    is killed before, nothing changes, and another call goes on where it stopped. Several processes may do this at the
    same time: each embeds other examples.

    Examples without a text can't be embedded again. If there are any, `confirm` is called with their number by task,
    and raises an error to give up. Returns these numbers of lost embeddings, or None if there was nothing to exchange,
    because the encoder is the present one, no embeddings exist, or another process has exchanged the tables. Raises
    RefusedError if the database is being changed to another encoder, or if the encoder's vectors are too long for an
    index.
    """
    with translated_errors(), connect(url, application_name="loracomp encoder set") as connection:
        if not _is_present(connection, encoder) and (left_out := _without_text(connection)):
            confirm(left_out)
        if _begin(url, encoder) == "present":
            return None
        while True:
            embed_missing(connection, encoder)
            if (lost := _exchange(url, encoder)) is not None:
                return lost
            if _is_present(connection, encoder):
                return None


def _is_present(connection: Connection, encoder: Encoder) -> bool:
    return any(_is(row, encoder) for row in rows_of(connection, QUERIES["show_encoder"]))


def _is(row: Mapping[str, Any], encoder: Encoder) -> bool:
    return (row["fingerprint"], row["input_version"]) == (encoder.fingerprint, encoder.input_version)


def _without_text(connection: Connection) -> dict[str, int]:
    return {row["task"]: row["examples"] for row in connection.execute(QUERIES["examples_without_text"])}


def _begin(url: str, encoder: Encoder) -> str:
    """Set the encoder, or begin to change it: 'present' or 'next', what it is now."""
    with schema.installing(url) as connection:
        (row,) = connection.execute(QUERIES["set_encoder"], vars(encoder))
    becomes: str = row["becomes"]
    return becomes


def _exchange(url: str, encoder: Encoder) -> Counts | None:
    """Exchange tables and encoders in a transaction. None if there is more to do first, or another process did it."""
    with schema.installing(url) as connection:
        schema.lock_tables(connection)
        upcoming = connection.execute(QUERIES["show_next_encoder"]).fetchone()
        left_out = _without_text(connection)
        if not upcoming or not _is(upcoming, encoder) or upcoming["missing"]:
            return None
        connection.execute(QUERIES["exchange_encoders"])
        with schema.set_aside(connection):
            connection.execute(QUERIES["exchange_embeddings"])
    _log.info("the encoder is %s now", encoder.name)
    return left_out
