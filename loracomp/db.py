"""Connections, and psycopg's errors in our own words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import psycopg
import psycopg.errors as pg
from pgvector.psycopg import register_vector
from psycopg.conninfo import conninfo_to_dict, make_conninfo
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
            with_defaults(url), autocommit=True, row_factory=dict_row, application_name=application_name
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


def with_defaults(url: str) -> str:
    """Unless the URL says otherwise: give up connecting after 10 s, notice within a minute that the server is gone."""
    defaults = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    return make_conninfo("", **{**defaults, **conninfo_to_dict(url)})


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what psycopg raises into the LoracompError that tells the caller what to do."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


_Kind: TypeAlias = type[psycopg.Error] | tuple[type[psycopg.Error], ...]

# The first that fits; {} is the server's own sentence.
_TRANSLATIONS: list[tuple[_Kind, type[LoracompError], str]] = [
    (pg.NoDataFound, NotFoundError, "{}"),
    ((pg.IntegrityError, pg.RaiseException), RefusedError, "{}"),
    ((pg.UndefinedTable, pg.UndefinedFunction, pg.InvalidSchemaName), SchemaMismatchError, "{}; run `loracomp init`"),
    (pg.ObjectNotInPrerequisiteState, SchemaMismatchError, "{}"),
    (pg.InsufficientPrivilege, RefusedError, "{}; ask an administrator for the loracomp role that may"),
    (psycopg.DataError, UsageError, "{}"),
    ((pg.QueryCanceled, pg.LockNotAvailable, pg.DeadlockDetected), LoracompError, "{}; try again"),
    (psycopg.OperationalError, DatabaseUnavailableError, "the database cannot be reached: {}"),
    (psycopg.Error, LoracompError, "{}"),
]


def translate(error: psycopg.Error) -> LoracompError:
    """Name the constraint, the missing object or the unreachable server, and the way out."""
    constraint = (error.diag.constraint_name or "").replace("_", " ")
    message = (error.diag.message_primary or str(error)).strip()
    sentence = ": ".join(filter(None, [constraint, message, error.diag.message_hint]))
    target, wording = next((target, wording) for kind, target, wording in _TRANSLATIONS if isinstance(error, kind))
    return target(wording.format(sentence))
