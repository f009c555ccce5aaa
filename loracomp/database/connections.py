"""Connections, and psycopg's errors in our own words."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeAlias, TypeVar

import psycopg
import psycopg.errors as pg
from pgvector.psycopg import register_vector
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format
from psycopg.rows import dict_row
from psycopg.types import TypeInfo

from loracomp.config import libpq_form
from loracomp.errors import (
    DatabaseUnavailableError,
    LoracompError,
    NotFoundError,
    RefusedError,
    SchemaMismatchError,
    UsageError,
)
from loracomp.records import Trace

Connection: TypeAlias = psycopg.Connection[dict[str, Any]]
T = TypeVar("T")


class _Impatient(psycopg.Connection[T]):
    """Raises OperationalError where a statement gets no answer in time: what lies between may swallow packets."""

    answer_s: float = float("inf")

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """As psycopg's; every statement goes through here."""
        return super().wait(_within(gen, self.answer_s), *args, **kwargs)


def _within(gen: Generator[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    """The same generator, which psycopg resumes several times a second; it raises when the time is over."""
    deadline = monotonic() + seconds
    ready = None
    while True:
        try:
            state = gen.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        ready = yield state
        if not ready and monotonic() > deadline:
            raise psycopg.OperationalError(f"no answer within {seconds:g} s")


def connect(
    url: str, *, application_name: str = "loracomp", vectors: bool = True, answer_s: float = float("inf")
) -> Connection:
    """Open an autocommit connection whose rows are dicts; with `vectors`, pgvector's types are known to it.

    It keeps nothing in the session, so that a pooler may change the server's end with each transaction: no statement is
    prepared, for what we send are calls, and functions keep their plans.
    A statement that takes longer than `answer_s` seconds raises psycopg.OperationalError, and the connection is of no
    use then. Raises DatabaseUnavailableError where the server can't be reached or has no pgvector, UsageError where
    `url` can't be read.
    """
    with translated_errors():
        connection: _Impatient[dict[str, Any]] = _Impatient.connect(
            with_defaults(url),
            autocommit=True,
            row_factory=dict_row,
            application_name=application_name,
            prepare_threshold=None,
        )
        connection.answer_s = answer_s
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


def know_traces(connection: Connection) -> None:
    """Let a connection pass `Trace` on as the bytes that it came as; once for each connection.

    Raises SchemaMismatchError where the database has no traces of this release.
    """
    if connection.adapters.types.get("route_trace") is not None:
        return
    info = TypeInfo.fetch(connection, "loracomp.route_trace")
    if info is None:
        raise SchemaMismatchError("the database has no type loracomp.route_trace; run `loracomp init`")
    info.register(connection)
    connection.adapters.register_loader(info.oid, _TraceLoader)
    connection.adapters.register_dumper(Trace, type("TraceDumper", (_TraceDumper,), {"oid": info.oid}))


class _TraceLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> Trace:
        return Trace(data)


class _TraceDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Trace) -> Buffer:
        return obj


def with_defaults(url: str) -> str:
    """Unless the URL says otherwise: give up connecting after 10 s, notice within a minute that the server is gone."""
    defaults = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    return make_conninfo("", **{**defaults, **conninfo_to_dict(libpq_form(url))})


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what psycopg raises into the LoracompError that tells the caller what to do."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


def storable(text: str) -> str:
    """As Postgres stores it, which has neither NUL nor half of a surrogate pair: those are spelled out, as in \\0."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


_Kind: TypeAlias = type[psycopg.Error] | tuple[type[psycopg.Error], ...]

# The first that fits; {} is the server's own sentence.
_TRANSLATIONS: list[tuple[_Kind, type[LoracompError], str]] = [
    (pg.NoDataFound, NotFoundError, "{}"),
    ((pg.IntegrityError, pg.RaiseException, pg.ConfigurationLimitExceeded), RefusedError, "{}"),
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
