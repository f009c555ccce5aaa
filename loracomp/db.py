"""Connections, and psycopg's errors in our own words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
from pgvector.psycopg import register_vector
from psycopg.rows import dict_row

from loracomp.errors import (
    DatabaseUnavailableError,
    LoracompError,
    NotFoundError,
    RefusedError,
    SchemaMismatchError,
    UsageError,
)

Connection: TypeAlias = psycopg.Connection[dict[str, Any]]


def connect(url: str, *, application_name: str = "loracomp", vectors: bool = True) -> Connection:
    """Open an autocommit connection whose rows are dicts; with `vectors`, pgvector's types are known to it.

    Raises DatabaseUnavailableError where the server can't be reached or has no pgvector.
    """
    with translated_errors():
        connection: Connection = psycopg.connect(
            url,
            autocommit=True,
            row_factory=dict_row,
            application_name=application_name,
            connect_timeout=10,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
        )
    if not vectors:
        return connection
    try:
        register_vector(connection)
    except psycopg.ProgrammingError:
        connection.close()
        raise DatabaseUnavailableError(
            "pgvector is not installed in this database: CREATE EXTENSION vector as a superuser, then `loracomp init`"
        ) from None
    return connection


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what psycopg raises into the LoracompError that tells the caller what to do."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


def translate(error: psycopg.Error) -> LoracompError:
    """Name the constraint, the missing object or the unreachable server, and the way out."""
    diagnosis = error.diag
    message = ": ".join(filter(None, [(diagnosis.message_primary or str(error)).strip(), diagnosis.message_hint]))
    match error:
        case psycopg.errors.NoDataFound():
            return NotFoundError(message)
        case psycopg.errors.IntegrityError() | psycopg.errors.RaiseException():
            sentence = (diagnosis.constraint_name or "").replace("_", " ")
            return RefusedError(f"{sentence}: {message}" if sentence else message)
        case psycopg.errors.UndefinedTable() | psycopg.errors.UndefinedFunction() | psycopg.errors.InvalidSchemaName():
            return SchemaMismatchError(f"{message}: run `loracomp init` on this database")
        case psycopg.errors.InsufficientPrivilege():
            return RefusedError(f"{message}: ask an administrator for the loracomp role that may")
        case psycopg.DataError():
            return UsageError(message)
        case psycopg.OperationalError():
            return DatabaseUnavailableError(f"the database cannot be reached: {message}")
        case _:
            return LoracompError(message)
