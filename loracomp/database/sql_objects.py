"""Drops and creates the objects of sql/ (functions, views, triggers, grants), always all of them together."""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from psycopg import errors
from sqlalchemy import Connection, CursorResult, Row, delete, insert, inspect, select
from sqlalchemy.exc import DBAPIError

from loracomp.database.queries import QUERIES
from loracomp.database.revision import packed_folder
from loracomp.database.tables import SCHEMA, sql_object
from loracomp.errors import RefusedError

ROLES = ("loracomp_submitter", "loracomp_worker", "loracomp_analyst", "loracomp_admin")
"""Roles whose grants are in sql/. Grants that an administrator gave to other roles are kept when sql/ is applied."""

FIXED_PATH = f"SET LOCAL search_path = {SCHEMA}, pg_temp"
"""The path under which all is created: names are bound in pg_catalog and our schema, where only the installer creates.

In a schema where others may create, an overload whose argument types match exactly would be called in place of the
built-in function, with the rights of whoever uses ours.
"""
_LOCK_ATTEMPTS = 100  # about a minute
_TRY_AGAIN = (errors.QueryCanceled, errors.LockNotAvailable, errors.DeadlockDetected)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SqlFile:
    """A file of sql/: the objects of one topic, in the order in which they are created."""

    path: str
    source: str

    @property
    def checksum(self) -> str:
        """Sha256 in hex of the file's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Kept:
    """What others made on sql/'s objects, to be done again once those are back."""

    grants: Sequence[str] = ()
    views: Mapping[str, str] = field(default_factory=dict)
    """The statement that gives a user's view its definition back, by the view's name."""


def sql_files() -> list[SqlFile]:
    """Files of sql/ in the order in which they are applied."""
    root = packed_folder("sql")
    return [SqlFile(path.relative_to(root).as_posix(), path.read_text("utf-8")) for path in sorted(root.rglob("*.sql"))]


def changed_files(connection: Connection) -> list[str]:
    """Paths of the files of sql/ that were changed, added or removed since sql/ was applied to the database."""
    applied = {row.path: row.checksum for row in connection.execute(select(sql_object))}
    present = {file.path: file.checksum for file in sql_files()}
    return sorted(path for path in applied.keys() | present.keys() if applied.get(path) != present.get(path))


@contextmanager
def set_aside(connection: Connection) -> Iterator[None]:
    """Within this context sql/'s objects are dropped, as they would prevent changes to tables; then created again.

    Users' views over them are kept, and grants to other roles, also those on a table that is replaced by another of
    its name.
    """
    kept = drop(connection)
    yield
    apply(connection, kept)


def drop(connection: Connection) -> Kept:
    """Drop all objects that sql/ created, in reverse order and without CASCADE.

    Users' views over them stay, hollow until `apply` gives them their definitions back. If another object of a user's
    depends on one of ours, the server's error (DependentObjectsStillExist) names it.
    """
    if not inspect(connection).has_table(sql_object.name, schema=SCHEMA):
        return Kept()
    lock_tables(connection)
    grants = connection.exec_driver_sql(QUERIES["other_grants"], {"roles": list(ROLES)}).scalars().all()
    views = _defined_views(connection)
    for view in views:
        run(connection, view.hollow)
    for drops in connection.scalars(select(sql_object.c.drops).order_by(sql_object.c.position.desc())):
        for statement in drops:
            run(connection, statement)
    run(connection, REVOKE)
    connection.execute(delete(sql_object))
    return Kept(grants, {view.name: view.definition for view in views})


def user_views(connection: Connection) -> Sequence[Row[Any]]:
    """Users' views that read our views or call our functions, by name; `is_kept` says whether `drop` keeps one."""
    return run(connection, QUERIES["user_views"]).all()


def _defined_views(connection: Connection) -> list[Row[Any]]:
    with connection.begin_nested() as reading:
        run(connection, "SET LOCAL search_path = ''")  # definitions then name the schema of all that they use
        views = [view for view in user_views(connection) if view.is_kept]
        reading.rollback()
    return views


def lock_tables(connection: Connection) -> None:
    """Lock all tables and views until the transaction ends, so that clients wait.

    Raises RefusedError if others hold them for a minute.
    """
    # DROP locks one object after another, in another order than clients do, which would cause deadlocks. So lock all
    # tables first; if that takes longer than half of deadlock_timeout, release the locks and try again. Clients lock a
    # user's view before ours. LOCK TABLE asks for rights of its owner on what it reads, so ALTER VIEW locks it.
    views = "".join(view.lock for view in user_views(connection) if view.is_kept)
    tables = ", ".join(run(connection, QUERIES["lockable_tables"]).scalars())
    for _ in range(_LOCK_ATTEMPTS):
        try:
            with connection.begin_nested():
                run(connection, QUERIES["lock_patience"])
                run(connection, f"{views}LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE; SET LOCAL statement_timeout = 0")
            return
        except DBAPIError as error:
            if not isinstance(error.orig, _TRY_AGAIN):
                raise
            time.sleep(0.1)
    raise RefusedError("loracomp's tables are in use: " + "; ".join(run(connection, QUERIES["table_users"]).scalars()))


def apply(connection: Connection, kept: Kept) -> None:
    """Run the files of sql/ in path order, then what `drop` kept. Raises RefusedError if a user's view no longer fits.

    For each file it stores the checksum, and the statements that drop the objects that the file created (found by
    comparing the catalog before and after).
    """
    known = set(_drops(connection))
    for position, file in enumerate(sql_files()):
        try:
            run(connection, file.source)
        except DBAPIError as error:
            error.add_note(f"in sql/{file.path}")
            raise
        drops = [statement for statement in _drops(connection) if statement not in known]
        known.update(drops)
        row = {"path": file.path, "position": position, "drops": drops, "checksum": file.checksum}
        connection.execute(insert(sql_object).values(row))
    for statement in kept.grants:
        _grant_again(connection, statement)
    for name, definition in kept.views.items():
        _define_again(connection, name, definition)


def _drops(connection: Connection) -> Sequence[str]:
    return run(connection, QUERIES["object_drops"]).scalars().all()


def _grant_again(connection: Connection, statement: str) -> None:
    try:
        with connection.begin_nested():
            run(connection, statement)
    except DBAPIError as error:
        if not isinstance(error.orig, errors.UndefinedTable | errors.UndefinedFunction | errors.UndefinedColumn):
            raise
        _log.warning("the object is gone, so this was not done again: %s", statement)


def _define_again(connection: Connection, name: str, definition: str) -> None:
    try:
        run(connection, definition)
    except DBAPIError as error:
        reason, _, _ = str(error.orig).partition("\n")
        raise RefusedError(
            f"your view {name} does not fit this release ({reason}): drop it, repeat this, then create it as it fits"
        ) from error


def run(connection: Connection, source: str) -> CursorResult[Any]:
    """Send SQL without parameters: the text may contain several statements, and % has no special meaning."""
    return connection.exec_driver_sql(source, execution_options={"no_parameters": True})


REVOKE = "; ".join(
    f"REVOKE ALL ON {what} {SCHEMA}, bi FROM {', '.join(ROLES)}"
    for what in ("ALL TABLES IN SCHEMA", "ALL ROUTINES IN SCHEMA", "SCHEMA")
)
"""Takes from our roles what sql/ had granted them."""
