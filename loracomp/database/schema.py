"""Installs and upgrades the schema by running the script that `loracomp sql` prints."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from loracomp.database import script
from loracomp.database.connections import Connection, connect, rows_of, translate
from loracomp.database.queries import QUERIES
from loracomp.database.revision import current_revision, head
from loracomp.errors import LoracompError, RefusedError

_log = logging.getLogger(__name__)


def initialize(url: str, *, again: bool = False) -> list[str]:
    """Install this release's schema or upgrade to it: extension, roles, migrations, sql/. Returns what was done.

    Calling it again changes nothing; with `again`, sql/ is applied even if no file has changed.

    Raises SchemaMismatchError if the schema is newer than this release, RefusedError if a user's object depends on an
    object that must be replaced, and DatabaseUnavailableError if pgvector is missing or the server can't be reached.
    """
    with installing(url) as connection:
        before = current_revision(connection)
        if before != head():
            _run(connection, script.steps(before))
            return [f"schema {before or 'empty'} -> {head()}", "sql/ applied"]
        changed = [file.path for file in script.sql_files()] if again else _changed_files(connection)
        if not changed:
            return []
        _run(connection, script.steps(before))
        return [f"sql/ applied again: {', '.join(changed) if len(changed) <= 5 else f'{len(changed)} files'}"]


@contextmanager
def installing(url: str) -> Iterator[Connection]:
    """Open a transaction for changing the schema, in which no other installer runs and the roles and the extension
    exist.

    Raises RefusedError if roles are missing and may not be created, or if a user's object prevents a change;
    DatabaseUnavailableError if the server can't be reached or is too old, or if pgvector is missing.
    """
    with connect(url, application_name="loracomp init", vectors=False) as connection:
        connection.add_notice_handler(lambda notice: _log.warning("%s", notice.message_primary))
        # So that this transaction sees what another installer did while it waited for it.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        try:
            make_roles(connection)
            with connection.transaction():
                _run(connection, [script.begin()])
                yield connection
        except psycopg.Error as error:
            raise _explained(error) from error


def make_roles(connection: Connection) -> None:
    """Create loracomp's group roles if they are missing, in a transaction of their own."""
    with connection.transaction():
        _run(connection, [script.roles()])


@contextmanager
def set_aside(connection: Connection) -> Iterator[None]:
    """Within this context the objects of sql/ are dropped, because they would prevent changes to tables. At the end
    they are created again.

    All tables and views are locked until the transaction ends, so that clients wait. Users' views on loracomp's
    objects, and grants to other roles, are kept. Raises RefusedError if others keep tables locked for a minute.
    """
    _run(connection, script.drop())
    yield
    _run(connection, [*script.apply(), script.again()])


def changed_files(url: str) -> list[str]:
    """Return the paths of the files of sql/ that differ from the files applied to the database."""
    with connect(url, application_name="loracomp doctor", vectors=False) as connection:
        return _changed_files(connection)


def _changed_files(connection: Connection) -> list[str]:
    applied = {row["path"]: row["checksum"] for row in rows_of(connection, QUERIES["applied_files"])}
    present = {file.path: file.checksum for file in script.sql_files()}
    return sorted(path for path in applied.keys() | present.keys() if applied.get(path) != present.get(path))


def _run(connection: Connection, steps: Iterable[script.Step]) -> None:
    for step in steps:
        try:
            connection.execute(step.sql.encode())
        except psycopg.Error as error:
            error.add_note(f"in {step.name}")
            raise


def _explained(error: psycopg.Error) -> LoracompError:
    detail = (error.diag.message_detail or "").replace("\n", "; ")
    # If a view prevents a change of a column's type, the server reports it as "feature not supported".
    if detail and isinstance(error, errors.DependentObjectsStillExist | errors.FeatureNotSupported):
        return RefusedError(
            f"an object outside loracomp prevents this: {detail}. Drop that object, run the command again, then "
            "create the object again"
        )
    return translate(error)
