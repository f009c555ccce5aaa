"""Runs migrations in one transaction under a lock: drops the objects of sql/, migrates, applies sql/ again."""

from collections.abc import Iterable
from typing import Any, TextIO

from alembic import context
from alembic.util import CommandError
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import Connection

from loracomp.config import load_settings
from loracomp.database import schema, sql_objects
from loracomp.database.embedded import database_url
from loracomp.database.tables import SCHEMA, RoleName, metadata
from loracomp.errors import LoracompError


def _same_type(_context: Any, _inspected: Any, _column: Any, inspected_type: Any, metadata_type: Any) -> bool | None:
    # `loracomp init` sets the encoder's dimension, so vectors may differ in length; `name` is reflected as a string.
    return False if isinstance(metadata_type, HALFVEC | RoleName) else None


def _ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "schema" or name == SCHEMA


def _migrate(connection: Connection) -> None:
    schema.current_revision(connection)  # refuses a newer one in words
    kept: sql_objects.Kept | None = None

    def steps(heads: Any, migration_context: Any) -> Iterable[Any]:
        nonlocal kept
        planned = list(plan(heads, migration_context))
        if planned:
            kept = sql_objects.drop(connection)
        return planned

    options: dict[str, Any] = {
        "connection": connection,
        "target_metadata": metadata,
        "version_table_schema": SCHEMA,
        "include_schemas": True,
        "include_name": _ours,
        "compare_type": _same_type,
        "compare_server_default": True,
    }
    # Alembic's own choice of steps, such as upgrade or check, is known once it is configured.
    context.configure(**options)
    plan = context.get_context().opts["fn"]
    if not context.get_context().opts.get("dont_mutate"):
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        connection.exec_driver_sql(f"COMMENT ON SCHEMA {SCHEMA} IS '{schema.NOTE}'")
    context.configure(**options, fn=steps)
    with context.begin_transaction():
        context.run_migrations()
        if kept is not None:
            schema.finish_migration(connection, kept)


def _write(output: TextIO | None) -> None:
    """Write the migrations as SQL: a part of what `loracomp sql` prints."""
    if output is None:
        raise CommandError(
            "--sql is not possible: functions and views are dropped and applied around migrations. Use `loracomp sql`"
        )
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        output_buffer=output,
        version_table_schema=SCHEMA,
        transactional_ddl=False,
    )
    context.run_migrations()


def main() -> None:
    """Run the migrations on the caller's connection, if there is one (`loracomp init`), or on a new one."""
    if context.is_offline_mode():
        _write(context.config.output_buffer)
        return
    given = context.config.attributes.get("connection")
    if given is not None:
        _migrate(given)
        return
    try:
        with schema.installing(database_url(load_settings())) as connection:
            _migrate(connection)
    except LoracompError as error:
        raise CommandError(str(error)) from error


main()
