"""The schema as a whole: roles, extension, migrations and sql/, and whether a database is at this release's."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import errors
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from loracomp.database import sql_objects
from loracomp.database.connections import translate, with_defaults
from loracomp.database.sql_objects import ROLES, packed_folder
from loracomp.database.tables import SCHEMA
from loracomp.errors import DatabaseUnavailableError, LoracompError, RefusedError, SchemaMismatchError

_PGVECTOR = "SELECT extversion, extnamespace::regnamespace::text AS place FROM pg_extension WHERE extname = 'vector'"
# A table that only schemas of before the first release have.
_FROM_BEFORE = "SELECT to_regclass('loracomp.adapter_weights') IS NOT NULL"
_FIRST_LOCK = 7_215_533_101_990_104_661  # any number, as long as it is ours
_NOTE = "loracomp: LoRA adapters composed for each job. INSERT INTO loracomp.job asks; docs/sql.md says what is public."

_log = logging.getLogger(__name__)


def initialize(url: str, *, again: bool = False) -> list[str]:
    """Bring the database to this release: extension, roles, migrations, sql/. Idempotent; returns what was done.

    With `again`, sql/ is applied though no file of it has changed.

    Raises SchemaMismatchError where the schema is newer than this release, RefusedError where a user's object
    depends on one that must be replaced, DatabaseUnavailableError where pgvector is missing or the server away.
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


def check_revision(url: str) -> None:
    """Raise SchemaMismatchError unless the database is at this release's revision."""
    with _opened(url) as engine, engine.connect() as connection:
        found = current_revision(connection)
    if found != head():
        raise SchemaMismatchError(
            f"the database's schema ({found or 'none'}) is older than this release: run `loracomp init`"
        )


def changed_files(url: str) -> list[str]:
    """Paths of the files of sql/ that differ from what was applied to the database."""
    with _opened(url) as engine, engine.connect() as connection:
        return sql_objects.changed_files(connection)


@contextmanager
def installing(url: str) -> Iterator[Connection]:
    """One transaction in which no other installer works on this database; roles and extension are there.

    Raises RefusedError where roles are missing and may not be made, or a user's object stands in the way of a change;
    DatabaseUnavailableError where the server is away or too old, or pgvector is missing.
    """
    with _opened(url) as engine:
        ensure_roles(engine)
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            _shut_out_installers(connection)
            ensure_extension(connection)
            yield connection


def _shut_out_installers(connection: Connection) -> None:
    # By what only the schema's owner may lock, for any login may hold an advisory lock for ever. Before there is a
    # schema there is nothing else, and nobody whom the first installer would have let in.
    while not _locked_schema(connection):
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _FIRST_LOCK})
        if not _has_schema(connection):
            return


def _has_schema(connection: Connection) -> bool:
    return connection.scalar(text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": SCHEMA}) is True


def _locked_schema(connection: Connection) -> bool:
    if not _has_schema(connection):
        return False
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(f"COMMENT ON SCHEMA {SCHEMA} IS '{_NOTE}'")
    except DBAPIError as error:
        # Whom we waited for took it away.
        if isinstance(error.orig, errors.InvalidSchemaName | errors.UndefinedObject):
            return False
        if isinstance(error.orig, errors.InsufficientPrivilege):
            raise RefusedError(f"schema {SCHEMA} is not yours: run `loracomp init` as its owner") from None
        raise
    return True


@contextmanager
def _opened(url: str) -> Iterator[Engine]:
    def connect() -> psycopg.Connection:
        return psycopg.connect(with_defaults(url), application_name="loracomp init")

    # READ COMMITTED, for what another installer did is to be seen once its lock is ours.
    engine = create_engine(
        "postgresql+psycopg://", creator=connect, poolclass=NullPool, isolation_level="READ COMMITTED"
    )
    try:
        yield engine
    except DBAPIError as error:
        raise _explained(error) from error


def _explained(error: DBAPIError) -> LoracompError:
    detail = (_cause(error).diag.message_detail or "").replace("\n", "; ")
    # Of a column's type, the server says the same as "not supported".
    if detail and isinstance(error.orig, errors.DependentObjectsStillExist | errors.FeatureNotSupported):
        return RefusedError(
            f"an object outside loracomp stands in the way: {detail}. Drop it, run again, and make it again"
        )
    return translate(_cause(error))


def _cause(error: DBAPIError) -> psycopg.Error:
    assert isinstance(error.orig, psycopg.Error)
    return error.orig


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration over the packed migrations; `connection` is used instead of opening one."""
    config = Config()
    config.set_main_option("script_location", str(packed_folder("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """Revision that this release brings a database to."""
    revision = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert revision
    return revision


def current_revision(connection: Connection) -> str | None:
    """Revision of the database; SchemaMismatchError where this release does not know it, or no release made it."""
    if connection.scalar(text(_FROM_BEFORE)):
        raise SchemaMismatchError(
            "the database was made before the first release and can't be brought to this one: make another; "
            "`loracomp db reset` deletes the embedded one, and `loracomp init` then makes it again"
        )
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    revision = context.get_current_revision()
    known = {step.revision for step in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaMismatchError(
            f"the database's schema ({revision}) is newer than this release knows: upgrade loracomp to use it"
        )
    return revision


def finish_migration(connection: Connection, grants: list[str]) -> None:
    """Apply sql/ where the migrations ended at this release's revision; leave nothing where they ended at the start."""
    revision = current_revision(connection)
    if revision == head():
        sql_objects.apply(connection, grants)
    elif revision is None:
        sql_objects.run(connection, f"DROP TABLE {SCHEMA}.alembic_version; DROP SCHEMA {SCHEMA}")
    else:
        _log.warning("schema %s is older than this release: functions and views wait for `loracomp init`", revision)


def ensure_extension(connection: Connection) -> None:
    """Create the extension pgvector and load its library: until then only superusers may SET hnsw.* on a function.

    Raises DatabaseUnavailableError if it can't be created, is too old, or is installed in a schema that is not in the
    search_path of our functions.
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
    connection.execute(text(f"SET LOCAL search_path = {SCHEMA}, public"))
    connection.execute(text("SELECT '[1]'::vector"))


def ensure_roles(engine: Engine) -> None:
    """Make the cluster's loracomp roles that are missing; installers of two databases may meet, so it tries again.

    Raises RefusedError where they are missing and the installer may not create roles.
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
        connection.scalars(text("SELECT rolname FROM pg_roles WHERE rolname = ANY (:names)"), {"names": list(ROLES)})
    )
    for role in ROLES:
        if role not in present:
            connection.exec_driver_sql(f"CREATE ROLE {role} NOLOGIN")
