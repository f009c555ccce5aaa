"""Installs and upgrades the schema: roles, extension, migrations, sql/."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import psycopg
from alembic import command
from alembic.config import Config
from psycopg import errors
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from loracomp.database import revision, sql_objects
from loracomp.database.connections import translate, with_defaults
from loracomp.database.queries import QUERIES
from loracomp.database.revision import head, packed_folder
from loracomp.database.sql_objects import ROLES
from loracomp.database.tables import SCHEMA
from loracomp.errors import DatabaseUnavailableError, LoracompError, RefusedError

_PGVECTOR = "SELECT extversion, extnamespace::regnamespace::text AS place FROM pg_extension WHERE extname = 'vector'"
_FIRST_LOCK = 7_215_533_101_990_104_661  # key of an advisory lock: a random number, so that nobody else uses it
NOTE = "loracomp: LoRA adapters composed for each job. INSERT INTO loracomp.job asks; docs/sql.md says what is public."

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
            command.upgrade(alembic_config(connection), "head")
            return [f"schema {before or 'empty'} -> {head()}", "sql/ applied"]
        changed = [file.path for file in sql_objects.sql_files()] if again else sql_objects.changed_files(connection)
        if changed:
            with sql_objects.set_aside(connection):
                pass
            return [f"sql/ applied again: {', '.join(changed) if len(changed) <= 5 else f'{len(changed)} files'}"]
    return []


def changed_files(url: str) -> list[str]:
    """Paths of the files of sql/ that differ from those applied to the database."""
    with _opened(url) as engine, engine.connect() as connection:
        return sql_objects.changed_files(connection)


@contextmanager
def installing(url: str) -> Iterator[Connection]:
    """A transaction for changing the schema: it locks out other installers, and has made sure of roles and extension.

    Raises RefusedError if roles are missing and may not be created, or if a user's object prevents a change;
    DatabaseUnavailableError if the server can't be reached or is too old, or if pgvector is missing.
    """
    with _opened(url) as engine:
        ensure_roles(engine)
        with engine.begin() as connection:
            sql_objects.run(connection, sql_objects.FIXED_PATH)
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            _shut_out_installers(connection)
            _refuse_others_schemas(connection)
            ensure_extension(connection)
            yield connection


def _shut_out_installers(connection: Connection) -> None:
    # Lock the schema, which only its owner can: any login could hold an advisory lock for ever. The advisory lock is
    # used only until there is a schema; before that, no other login has been granted anything.
    while not _locked_schema(connection):
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _FIRST_LOCK})
        if not _has_schema(connection):
            return


def _refuse_others_schemas(connection: Connection) -> None:
    # Whoever can create functions in our schemas can have the installer's rights, so it must be nobody else.
    problem = sql_objects.run(connection, QUERIES["others_in_schemas"]).scalar()
    if problem is not None:
        raise RefusedError(problem)


def _has_schema(connection: Connection) -> bool:
    return connection.scalar(text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": SCHEMA}) is True


def _locked_schema(connection: Connection) -> bool:
    if not _has_schema(connection):
        return False
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"COMMENT ON SCHEMA {SCHEMA} IS '{NOTE}'")
    except DBAPIError as error:
        # The session that we waited for has dropped the schema.
        if isinstance(error.orig, errors.InvalidSchemaName | errors.UndefinedObject):
            return False
        if isinstance(error.orig, errors.InsufficientPrivilege):
            raise RefusedError(f"schema {SCHEMA} is not yours: run `loracomp init` as its owner") from None
        raise
    return True


@contextmanager
def _opened(url: str) -> Iterator[Engine]:
    def connect() -> psycopg.Connection:
        connection = psycopg.connect(with_defaults(url), application_name="loracomp init")
        if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
            name = connection.info.dbname
            connection.close()
            raise RefusedError(
                f"database {name} has the encoding {encoding}, and loracomp needs UTF8: make another database, for "
                "example by CREATE DATABASE loracomp ENCODING 'UTF8' TEMPLATE template0"
            )
        return connection

    # READ COMMITTED, so that after waiting for another installer's lock we see what it did.
    engine = create_engine(
        "postgresql+psycopg://",
        creator=connect,
        poolclass=NullPool,
        isolation_level="READ COMMITTED",
        use_native_hstore=False,  # would look the type up, under the login's own search path
    )
    try:
        yield engine
    except DBAPIError as error:
        raise _explained(error) from error


def _explained(error: DBAPIError) -> LoracompError:
    detail = (_cause(error).diag.message_detail or "").replace("\n", "; ")
    # If a view prevents a change of a column's type, the server reports it as "feature not supported".
    if detail and isinstance(error.orig, errors.DependentObjectsStillExist | errors.FeatureNotSupported):
        return RefusedError(
            f"an object outside loracomp prevents this: {detail}. Drop that object, repeat this, then create it again"
        )
    return translate(_cause(error))


def _cause(error: DBAPIError) -> psycopg.Error:
    assert isinstance(error.orig, psycopg.Error)
    return error.orig


def alembic_config(connection: Connection | None = None, output: TextIO | None = None) -> Config:
    """Alembic's configuration for the packaged migrations, to run them on `connection` or write them to `output`."""
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(packed_folder("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def current_revision(connection: Connection) -> str | None:
    """Like `revision.current_revision`, on a connection of SQLAlchemy's."""
    return revision.current_revision(driver(connection))


def driver(connection: Connection) -> psycopg.Connection[Any]:
    """The connection of psycopg's under one of SQLAlchemy's, in the same transaction."""
    found = connection.connection.driver_connection
    assert isinstance(found, psycopg.Connection)
    return found


def finish_migration(connection: Connection, kept: sql_objects.Kept) -> None:
    """Finish after migrations: apply sql/ if they ended at the newest revision, drop the schema if at no revision.

    Raises RefusedError if sql/ is not applied and views of users' need it.
    """
    reached = current_revision(connection)
    if reached == head():
        sql_objects.apply(connection, kept)
    elif kept.views:
        raise RefusedError(f"views of yours need what would be missing: drop {', '.join(kept.views)}, repeat this")
    elif reached is None:
        sql_objects.run(connection, f"DROP TABLE {SCHEMA}.alembic_version; DROP SCHEMA {SCHEMA}")
    else:
        _log.warning(
            "schema %s is older than this release: its functions and views are missing until `loracomp init`", reached
        )


def ensure_extension(connection: Connection) -> None:
    """Create the extension pgvector and load its library (before that, only superusers may SET hnsw.* on a function).

    Raises DatabaseUnavailableError if the extension can't be created, is too old, or is not in schema public.
    """
    try:
        with connection.begin_nested():
            connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public"))
    except DBAPIError as error:
        raise DatabaseUnavailableError(
            f"this database has no pgvector ({translate(_cause(error))}): install it on the server, "
            "then let a superuser run CREATE EXTENSION vector in this database"
        ) from None
    found = connection.execute(text(_PGVECTOR)).one()
    if tuple(map(int, found.extversion.split("."))) < (0, 8):
        raise DatabaseUnavailableError(
            f"pgvector {found.extversion} is too old, 0.8 is needed: install it on the server, "
            "then run ALTER EXTENSION vector UPDATE"
        )
    if found.place != "public":
        raise DatabaseUnavailableError(
            f"pgvector is in schema {found.place} and must be in public: run ALTER EXTENSION vector SET SCHEMA public"
        )
    connection.execute(text("SELECT '[1]'::public.vector"))


def ensure_roles(engine: Engine) -> None:
    """Create the loracomp roles that the server lacks.

    Roles belong to all databases of a server, so installers of two databases may collide; then it tries again. Raises
    RefusedError if roles are missing and the installer may not create roles.
    """
    for attempt in range(20):
        try:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                _create_missing_roles(connection)
            return
        except DBAPIError as error:
            if isinstance(error.orig, errors.InsufficientPrivilege):
                raise RefusedError(
                    f"the installer may not create roles: let an administrator run CREATE ROLE for {', '.join(ROLES)}"
                ) from None
            if isinstance(error.orig, errors.OperationalError) or attempt == 19:
                raise
            time.sleep(0.05 * (attempt + 1))


def _create_missing_roles(connection: Connection) -> None:
    present = set(
        connection.scalars(
            text("SELECT rolname FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) ANY (:names)"),
            {"names": list(ROLES)},
        )
    )
    for role in ROLES:
        if role not in present:
            connection.exec_driver_sql(f"CREATE ROLE {role} NOLOGIN")
