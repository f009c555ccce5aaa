"""The schema as a whole: roles, migrations, and the replaceable objects of sql/ around them."""

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from loracomp.db import translate
from loracomp.errors import DatabaseUnavailableError, RefusedError, SchemaMismatchError
from loracomp.tables import SCHEMA

ROLES = ("loracomp_submitter", "loracomp_worker", "loracomp_analyst", "loracomp_admin")
_LOCK = 7_215_533_101_990_104_661  # any number, as long as it is ours


@dataclass(frozen=True, slots=True)
class SqlObject:
    """A file of sql/: what it makes, and the statements that undo it."""

    path: str
    source: str

    @property
    def checksum(self) -> str:
        """Sha256 of the file."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def drops(self) -> list[str]:
        """Statements of its `-- drop:` lines, last first."""
        return re.findall(r"^-- drop: (.+?);?\s*$", self.source, flags=re.MULTILINE)[::-1]


def sqlalchemy_url(url: str) -> URL:
    """The same database for SQLAlchemy, through psycopg 3; any libpq URL or connection string."""
    parameters = {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(url).items()}
    return URL.create("postgresql+psycopg", query=parameters)


def folder(name: str) -> Path:
    """`migrations` or `sql`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name


def sql_objects() -> list[SqlObject]:
    """Files of sql/ in the order in which they are applied."""
    root = folder("sql")
    return [SqlObject(path.relative_to(root).as_posix(), path.read_text()) for path in sorted(root.rglob("*.sql"))]


def lock(connection: Connection) -> None:
    """Wait until no other installer works on this database; held until the transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def initialize(url: str) -> list[str]:
    """Bring the database to this release: extension, roles, migrations, sql/. Idempotent; returns what was done.

    Raises SchemaMismatchError where the schema is newer than this release, RefusedError where a user's object
    depends on one that must be replaced, DatabaseUnavailableError where pgvector is missing or the server away.
    """
    engine = create_engine(sqlalchemy_url(url))
    try:
        ensure_roles(engine)
        with engine.begin() as connection:
            lock(connection)
            return _upgrade(connection)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise translate(error.orig) from error
        raise
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> list[str]:
    ensure_extension(connection)
    script = ScriptDirectory.from_config(alembic_config())
    before = current_revision(connection, script)
    if before != script.get_current_head():
        command.upgrade(alembic_config(connection), "head")
        return [f"schema {before or 'empty'} -> {script.get_current_head()}", "sql/ applied"]
    if changed := drift(connection):
        drop_objects(connection)
        apply_objects(connection)
        return [f"sql/ applied again: {', '.join(changed)}"]
    return []


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration over the packed migrations; `connection` is used instead of opening one."""
    config = Config()
    config.set_main_option("script_location", str(folder("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def current_revision(connection: Connection, script: ScriptDirectory) -> str | None:
    """Revision of the database; SchemaMismatchError where this release does not know it."""
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    revision = context.get_current_revision()
    known = {step.revision for step in script.walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaMismatchError(
            f"the database's schema ({revision}) is newer than this release knows: upgrade loracomp to use it"
        )
    return revision


def check_revision(url: str) -> None:
    """Raise SchemaMismatchError unless the database is at this release's revision."""
    engine = create_engine(sqlalchemy_url(url))
    try:
        with engine.connect() as connection:
            script = ScriptDirectory.from_config(alembic_config())
            found = current_revision(connection, script)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise translate(error.orig) from error
        raise
    finally:
        engine.dispose()
    if found != script.get_current_head():
        raise SchemaMismatchError(
            f"the database's schema ({found or 'none'}) is older than this release: run `loracomp init`"
        )


def ensure_extension(connection: Connection) -> None:
    """Make pgvector and load its library, without which SET hnsw.* on a function is refused to all but superusers."""
    if connection.scalar(text("SELECT count(*) FROM pg_extension WHERE extname = 'vector'")) == 0:
        try:
            with connection.begin_nested():
                connection.execute(text("CREATE EXTENSION vector"))
        except DBAPIError as error:
            raise DatabaseUnavailableError(
                f"pgvector is not installed here ({error.orig}): install it on the server, "
                "then CREATE EXTENSION vector as a superuser"
            ) from None
    connection.execute(
        text(
            "SELECT set_config('search_path', 'loracomp, ' || extnamespace::regnamespace::text, true) "
            "FROM pg_extension WHERE extname = 'vector'"
        )
    )
    connection.execute(text("SELECT '[1]'::vector"))


def ensure_roles(engine: Engine) -> None:
    """Make the cluster's loracomp roles that are missing; two installers of two databases may meet, so it tries again.

    Raises RefusedError where they are missing and the installer may not create roles.
    """
    for attempt in range(20):
        try:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                _create_missing_roles(connection)
            return
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                raise RefusedError(
                    f"the installer may not create roles: let an administrator run CREATE ROLE for {', '.join(ROLES)}"
                ) from None
            if isinstance(error.orig, psycopg.OperationalError) or attempt == 19:
                raise
            time.sleep(0.05 * (attempt + 1))


def _create_missing_roles(connection: Connection) -> None:
    present = set(
        connection.scalars(text("SELECT rolname FROM pg_roles WHERE rolname = ANY (:names)"), {"names": list(ROLES)})
    )
    for role in ROLES:
        if role not in present:
            connection.exec_driver_sql(f"CREATE ROLE {role} NOLOGIN")


def drift(connection: Connection) -> list[str]:
    """Files of sql/ that differ from what stands in the database, by path."""
    rows = connection.execute(text("SELECT path, checksum FROM loracomp.sql_object"))
    applied = {row.path: row.checksum for row in rows}
    present = {item.path: item.checksum for item in sql_objects()}
    return sorted(path for path in applied.keys() | present.keys() if applied.get(path) != present.get(path))


def drop_objects(connection: Connection) -> None:
    """Drop what sql/ made, in reverse order and without CASCADE; grants given to others are remembered.

    Raises RefusedError that names the object of a user's that stands in the way.
    """
    if not inspect(connection).has_table("sql_object", schema=SCHEMA):
        return
    _run(connection, _REMEMBER_GRANTS)
    rows = connection.scalars(text("SELECT drops FROM loracomp.sql_object ORDER BY position DESC"))
    for statement in [statement for drops in rows for statement in drops]:
        try:
            _run(connection, statement)
        except psycopg.errors.DependentObjectsStillExist as error:
            raise _in_the_way(error) from None
    connection.execute(text("DELETE FROM loracomp.sql_object"))


def _in_the_way(error: psycopg.Error) -> RefusedError:
    detail = (error.diag.message_detail or "").replace("\n", "; ")
    return RefusedError(
        f"an object outside loracomp stands in the way: {detail}. Drop it, run again, and make it again"
    )


def _run(connection: Connection, source: str) -> None:
    # Without parameters psycopg sends a text as it is: it may hold several statements, and % is only a character.
    cursor = connection.connection.cursor()
    cursor.execute(source.encode())
    cursor.close()


def apply_objects(connection: Connection) -> None:
    """Apply sql/ in path order, store each file's checksum, restore grants. Only a database at head is served."""
    script = ScriptDirectory.from_config(alembic_config())
    if current_revision(connection, script) != script.get_current_head():
        return
    ensure_extension(connection)
    for position, item in enumerate(sql_objects()):
        _run(connection, item.source)
        connection.execute(
            text(
                "INSERT INTO loracomp.sql_object (path, position, drops, checksum) "
                "VALUES (:path, :position, :drops, :checksum)"
            ),
            {"path": item.path, "position": position, "drops": item.drops, "checksum": item.checksum},
        )
    _run(connection, _RESTORE_GRANTS)


_REMEMBER_GRANTS = r"""
SET LOCAL search_path = pg_catalog;  -- names must come out qualified, to be found again
CREATE TEMPORARY TABLE loracomp_grants ON COMMIT DROP AS
SELECT o.kind, o.object, o.signature, a.privilege_type, a.grantee::regrole::text AS grantee, a.is_grantable
FROM (
    SELECT 'TABLE' AS kind, oid AS object, oid::regclass::text AS signature, relowner AS owner, relacl AS acl
    FROM pg_class WHERE relkind IN ('v', 'm') AND relnamespace::regnamespace::text IN ('loracomp', 'bi')
    UNION ALL
    SELECT 'FUNCTION', oid, oid::regprocedure::text, proowner, proacl
    FROM pg_proc WHERE pronamespace::regnamespace::text IN ('loracomp', 'bi')
) o
CROSS JOIN LATERAL aclexplode(o.acl) a
WHERE a.grantee NOT IN (0, o.owner) AND a.grantee::regrole::text NOT LIKE 'loracomp\_%';
RESET search_path;
"""

_RESTORE_GRANTS = """
SET LOCAL search_path = pg_catalog;
DO $$
DECLARE
    g record;
BEGIN
    IF to_regclass('pg_temp.loracomp_grants') IS NULL THEN
        RETURN;
    END IF;
    FOR g IN
        SELECT * FROM pg_temp.loracomp_grants
        WHERE CASE kind WHEN 'TABLE' THEN to_regclass(signature)::oid ELSE to_regprocedure(signature)::oid END IS NOT NULL
    LOOP
        EXECUTE format('GRANT %s ON %s %s TO %s', g.privilege_type, g.kind, g.signature, g.grantee)
            || CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END;
    END LOOP;
    DROP TABLE pg_temp.loracomp_grants;
END
$$;
RESET search_path;
"""
