"""Opens connections, and translates psycopg's errors into loracomp's."""

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from decimal import Decimal
from time import monotonic
from typing import Any, TypeAlias, TypeVar, cast

import psycopg
import psycopg.errors as pg
from pgvector.psycopg.halfvec import register_halfvec_info
from pgvector.psycopg.vector import register_vector_info
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.json import set_json_loads

from loracomp.config import libpq_form
from loracomp.database.queries import QUERIES
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

COMMIT_S = 2.0
"""Seconds that the COMMIT of a statement with timeouts waits for locks."""


class _Impatient(psycopg.Connection[T]):
    """A connection whose statements raise OperationalError if they get no answer within `statement_timeout_s` seconds.

    Without it, a statement would wait for ever if the network silently drops packets. If the server can be reached, the
    statement is first cancelled there. Otherwise it might still commit, for example a claim of jobs that no worker
    knows of, and each retry would leave behind another session that waits for the same lock.
    """

    statement_timeout_s: float = float("inf")

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Do what psycopg's method does, through which every statement runs, but with the time limit."""
        try:
            return super().wait(_within(gen, self.statement_timeout_s, self._cancel), *args, **kwargs)
        except _NoAnswerError:
            self.close()
            raise

    def _cancel(self, within_s: float) -> None:
        with suppress(psycopg.Error):
            self.cancel_safe(timeout=within_s)


class _NoAnswerError(psycopg.OperationalError):
    """The server has not answered in time."""


def _within(gen: Generator[Any, Any, T], seconds: float, cancel: Callable[[float], object]) -> Generator[Any, Any, T]:
    """Wrap one of psycopg's generators, which psycopg resumes several times a second, so that it raises after
    `seconds`.

    Shortly before that it calls `cancel`. If the statement still succeeds, its result is returned.
    """
    deadline = monotonic() + seconds
    to_cancel_s = min(2.0, 0.1 * seconds)
    cancelled = False
    ready = None
    while True:
        try:
            state = gen.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except pg.QueryCanceled as error:
            if cancelled:
                raise _NoAnswerError(f"no answer within {seconds:g} s") from error
            raise
        ready = yield state
        if ready or monotonic() < deadline - to_cancel_s:
            continue
        if not cancelled:
            cancelled = True
            cancel(to_cancel_s)
        elif monotonic() > deadline:
            raise _NoAnswerError(f"no answer within {seconds:g} s")


def connect(
    url: str,
    *,
    application_name: str = "loracomp",
    vectors: bool = True,
    statement_timeout_s: float = float("inf"),
    instead: Mapping[str, str] | None = None,
) -> Connection:
    """Open an autocommit connection that returns rows as dicts and, with `vectors`, pgvector's types as arrays.

    `instead` are libpq parameters, such as user, that replace the parameters of the URL.

    It works through a pooler in transaction mode, because the session has no state except the settings of the query
    `set_session`. The server reports three of these settings to its clients, so poolers restore them. The role and the
    database must not change the other settings. Statements are not prepared, because they only call SQL functions,
    inside which Postgres caches the plans. A statement that gets no answer for `statement_timeout_s` seconds is
    cancelled and raises psycopg.OperationalError; the connection can't be used afterwards. Raises
    DatabaseUnavailableError if the server can't be reached or has no pgvector, and UsageError if `url` can't be read.
    """
    with translated_errors():
        connection: _Impatient[dict[str, Any]] = _Impatient.connect(
            make_conninfo(with_defaults(url), **(instead or {})),
            autocommit=True,
            row_factory=dict_row,
            application_name=application_name,
            client_encoding="UTF8",
            prepare_threshold=None,
        )
        connection.statement_timeout_s = statement_timeout_s
        set_json_loads(_loaded, connection)
        connection.execute(QUERIES["set_session"])
    if not vectors:
        return connection
    with translated_errors():
        types = {row["name"]: TypeInfo(**row) for row in connection.execute(QUERIES["vector_types"])}
    if len(types) < 2:
        connection.close()
        raise DatabaseUnavailableError(
            "pgvector is not installed in this database: CREATE EXTENSION vector as a superuser, then `loracomp init`"
        )
    # The functions of pgvector and psycopg are not used, because their statements could call functions that others
    # created in public.
    register_vector_info(connection, types["vector"])
    register_halfvec_info(connection, types["halfvec"])
    return connection


def _loaded(text: str | bytes) -> Any:
    """Parse JSON from the server. It may contain values that Python's parser refuses, such as a number of 5,000
    digits."""
    try:
        return json.loads(text)
    except RecursionError:  # nested too deep; the constraints of our own columns refuse such values
        return text if isinstance(text, str) else text.decode()
    except ValueError:
        return json.loads(text, parse_int=Decimal)


def url_of(connection: Connection) -> str:
    """The parameters by which another connection to the same database can be opened, with the password."""
    return make_conninfo(connection.info.dsn, password=connection.info.password or None)


def know_traces(connection: Connection) -> None:
    """Make a connection load and send `Trace` as unchanged bytes. Call it once for each connection.

    Raises SchemaMismatchError if the database lacks the type loracomp.route_trace.
    """
    if connection.adapters.types.get("route_trace") is not None:
        return
    info = _fetched(connection, "route_trace")
    info.register(connection)
    connection.adapters.register_loader(info.oid, _TraceLoader)
    connection.adapters.register_dumper(Trace, type("TraceDumper", (_TraceDumper,), {"oid": info.oid}))


def composite(connection: Connection, name: str) -> type[Any]:
    """A named tuple type that the connection sends and loads as values of the composite type loracomp.`name`.

    Raises SchemaMismatchError if the database lacks the type.
    """
    info = connection.adapters.types.get(name)
    if not isinstance(info, CompositeInfo):
        info = _fetched(connection, name)
        register_composite(info, connection, make_sequence=_with_lists)
    return cast("type[Any]", info.python_type)


def fields_of(record: Any) -> dict[str, Any]:
    """A dataclass's fields by name. Unlike `asdict` it does not copy the values, which would take thirty times as
    long."""
    return {each.name: getattr(record, each.name) for each in fields(record)}


def _with_lists(row: Sequence[Any], _: CompositeInfo) -> list[Any]:
    """A row's values; psycopg sends lists as arrays, but not tuples."""
    return [[*value] if isinstance(value, tuple) else value for value in row]


def _fetched(connection: Connection, name: str) -> CompositeInfo:
    row = connection.execute(QUERIES["composite_type"], {"name": name}).fetchone()
    if row is None:
        raise SchemaMismatchError(f"the database has no type loracomp.{name}; run `loracomp init`")
    return CompositeInfo(**row)


class _TraceLoader(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> Trace:
        return Trace(data)


class _TraceDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Trace) -> Buffer:
        return obj


def with_defaults(url: str) -> str:
    """The URL with default timeouts: connecting may take 10 s, and the loss of the server is noticed within a
    minute."""
    defaults = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    return make_conninfo("", **{**defaults, **conninfo_to_dict(libpq_form(url))})


@contextmanager
def translated_errors() -> Iterator[None]:
    """Within this context, psycopg's exceptions become LoracompErrors, which tell the caller what to do."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error) from error


def rows_of(connection: Connection, statement: str, values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rows that a statement returns; psycopg's exceptions become LoracompErrors."""
    with translated_errors():
        return connection.execute(statement, values).fetchall()


def row_of(connection: Connection, statement: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the row of a statement that always returns one row; arguments are as for `rows_of`."""
    return rows_of(connection, statement, values)[0]


def rows_within(
    connection: Connection,
    seconds: float,
    statement: str,
    values: Mapping[str, Any] | None = None,
    *,
    lock_s: float | None = None,
) -> list[dict[str, Any]]:
    """The rows of a statement. If it takes longer than `seconds`, it raises psycopg.errors.QueryCanceled.

    If it waits for one lock longer than `lock_s` seconds, it raises psycopg.errors.LockNotAvailable.

    The timeouts and the statement are sent together, as one transaction that the server commits by itself, so that no
    locks are left behind if this process or its machine freezes before it reads the reply. The COMMIT waits longer for
    a lock: if the transaction has sent a notification, it needs a lock of the whole server, which any other COMMIT of
    that kind holds until it has ended, for example while it waits for the disk or for a synchronous standby.
    statement_timeout does not apply to COMMIT.
    """
    timeouts = {"statement": milliseconds(seconds), "lock": milliseconds(seconds if lock_s is None else lock_s)}
    with connection.pipeline():
        connection.execute(QUERIES["set_timeouts"], timeouts)
        cursor = connection.execute(statement, values)
        connection.execute(QUERIES["set_lock_timeout"], {"timeout": milliseconds(COMMIT_S)})
    return cursor.fetchall()


def milliseconds(seconds: float) -> str:
    """The value of a timeout for Postgres."""
    return f"{1000 * seconds:.0f}ms"


def allowed_rows(
    connection: Connection, *statements: str, values: Mapping[str, Any] | None = None
) -> list[dict[str, Any]] | None:
    """Return the rows of the first of these statements that the session's role may run, or None if it may run none of
    them."""
    for statement in statements:
        try:
            with connection.transaction():  # a savepoint, where a transaction is open
                return connection.execute(statement, values).fetchall()
        except pg.InsufficientPrivilege:
            continue
    return None


def storable(text: str) -> str:
    """Replace NUL characters and half surrogate pairs, which Postgres can't store, by escapes such as \\0."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


_Kind: TypeAlias = type[psycopg.Error] | tuple[type[psycopg.Error], ...]

# The first entry whose exception matches is used; {} stands for the server's message.
_TRANSLATIONS: list[tuple[_Kind, type[LoracompError], str]] = [
    ((pg.NoDataFound, pg.UndefinedColumn), NotFoundError, "{}"),
    ((pg.IntegrityError, pg.RaiseException, pg.ConfigurationLimitExceeded), RefusedError, "{}"),
    ((pg.UndefinedTable, pg.UndefinedFunction, pg.InvalidSchemaName), SchemaMismatchError, "{}; run `loracomp init`"),
    (pg.ObjectNotInPrerequisiteState, SchemaMismatchError, "{}"),
    (pg.FeatureNotSupported, DatabaseUnavailableError, "{}"),
    (pg.InsufficientPrivilege, RefusedError, "{}; ask an administrator for a role that may (docs/sql.md lists them)"),
    (
        pg.ReadOnlySqlTransaction,
        DatabaseUnavailableError,
        "{}: this server is a standby, or the login may only read. Name the primary in the address, or all "
        "servers (host=a,b) with target_session_attrs=read-write",
    ),
    (psycopg.DataError, UsageError, "{}"),
    ((pg.QueryCanceled, pg.LockNotAvailable, pg.DeadlockDetected), LoracompError, "{}; try again"),
    (psycopg.OperationalError, DatabaseUnavailableError, "the database cannot be reached: {}"),
    (psycopg.Error, LoracompError, "{}"),
]

_REPEATS_THE_NAME = ("new row for relation ", "insert or update on table ", "duplicate key value ")
"""How Postgres's own messages about constraints begin. Such a message says no more than the constraint's name."""


def translate(error: psycopg.Error) -> LoracompError:
    """The LoracompError for a psycopg error. Its message contains the violated constraint and the server's hint."""
    constraint = (error.diag.constraint_name or "").replace("_", " ")
    message = (error.diag.message_primary or str(error)).strip()
    if constraint and message.startswith(_REPEATS_THE_NAME):
        message = ""
    sentence = ": ".join(filter(None, [constraint, message, error.diag.message_hint]))
    if isinstance(error, (pg.UndefinedTable, pg.InvalidSchemaName)) and not re.search(r"\b(loracomp|bi)\b", message):
        return NotFoundError(sentence)  # a table that the caller named does not exist
    target, wording = next((target, wording) for kind, target, wording in _TRANSLATIONS if isinstance(error, kind))
    return target(wording.format(sentence))
