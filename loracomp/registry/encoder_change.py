"""Sets the database's encoder: stops routing, embeds all examples by the new encoder, and starts routing again."""

import logging
from collections.abc import Callable, Mapping

from loracomp.database import schema
from loracomp.database.connections import Connection, connect, row_of, rows_of, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.model.encoder import Encoder
from loracomp.registry.embeddings import embed_missing, encoder_key, is_encoder, tune_routing

Counts = Mapping[str, int]
_log = logging.getLogger(__name__)


def set_encoder(url: str, encoder: Encoder, confirm: Callable[[Counts], None] = lambda _: None) -> Counts | None:
    """Make `encoder` the database's encoder; only the schema's owner may.

    If the encoder changes, all embeddings are deleted, and jobs wait in the queue until all examples with a
    text are embedded again. A worker that loaded the old encoder notices this at its next claim, gives the claimed jobs
    back, and ends. If the process is killed, another call continues where it stopped. Several processes may do this at
    the same time, and each embeds other examples.

    Examples without a text can't be embedded again. If there are any, `confirm` is called with their number by task
    before anything is changed; it raises an error to cancel the change. Returns these numbers, or None if the encoder
    was the database's and ready. Raises RefusedError if the vectors are too long for an index, or if an object outside
    loracomp prevents a change of their length.
    """
    with translated_errors(), connect(url, application_name="loracomp encoder set") as connection:
        left_out = {} if _is_present(connection, encoder) else _without_text(connection)
        if left_out:
            confirm(left_out)
        if _stop_routing(url, encoder):
            return None
        embed_missing(connection, encoder)
        _start_routing(connection, encoder)
    _log.info("the encoder is %s now", encoder.name)
    return left_out


def _is_present(connection: Connection, encoder: Encoder) -> bool:
    return any(is_encoder(row, encoder) for row in rows_of(connection, QUERIES["show_encoder"]))


def _without_text(connection: Connection) -> dict[str, int]:
    return {row["task"]: row["examples"] for row in rows_of(connection, QUERIES["examples_without_text"])}


def _stop_routing(url: str, encoder: Encoder) -> bool:
    """Set the encoder; if it changes, delete all embeddings. Returns whether routing can use it already."""
    with schema.installing(url) as connection:
        is_ready: bool = row_of(connection, QUERIES["set_encoder"], vars(encoder))["is_ready"]
        if row_of(connection, QUERIES["embedding_dimensions"])["dimensions"] != encoder.dimensions:
            with schema.set_aside(connection):
                connection.execute(QUERIES["resize_embeddings"])
    return is_ready


def _start_routing(connection: Connection, encoder: Encoder) -> None:
    connection.execute(QUERIES["end_with_the_client"])
    with connection.transaction():
        connection.execute(QUERIES["start_routing"], encoder_key(encoder))
        connection.execute(QUERIES["build_embedding_index"])
    tune_routing(connection)
