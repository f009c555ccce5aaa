"""Run migrations: sql/ objects are dropped, tables migrated, sql/ applied again, in one transaction under a lock."""

from collections.abc import Iterable
from typing import Any

from alembic import context
from pgvector.sqlalchemy import Vector
from sqlalchemy import Connection, create_engine

from loracomp import schema
from loracomp.config import load_settings
from loracomp.embedded import database_url
from loracomp.tables import SCHEMA, RoleName, metadata


def _same_type(_context: Any, _inspected: Any, _column: Any, inspected_type: Any, metadata_type: Any) -> bool | None:
    # `loracomp init` sets the encoder's dimension, so vectors may differ in length; `name` is reflected as a string.
    return False if isinstance(metadata_type, Vector | RoleName) else None


def _ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "schema" or name == SCHEMA


def _migrate(connection: Connection) -> None:
    connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    planned = False

    def steps(heads: Any, migration_context: Any) -> Iterable[Any]:
        nonlocal planned
        found = list(plan(heads, migration_context))
        planned = bool(found)
        if planned:
            schema.drop_objects(connection)
        return found

    options: dict[str, Any] = {
        "connection": connection,
        "target_metadata": metadata,
        "version_table_schema": SCHEMA,
        "include_schemas": True,
        "include_name": _ours,
        "compare_type": _same_type,
        "compare_server_default": True,
    }
    context.configure(**options)
    plan = context.get_context().opts["fn"]
    context.configure(**options, fn=steps)
    with context.begin_transaction():
        context.run_migrations()
        if planned:
            schema.apply_objects(connection)


def main() -> None:
    """Use the caller's connection where there is one (`loracomp init`), else open one."""
    given = context.config.attributes.get("connection")
    if given is not None:
        _migrate(given)
        return
    engine = create_engine(schema.sqlalchemy_url(database_url(load_settings())))
    schema.ensure_roles(engine)
    with engine.begin() as connection:
        schema.lock(connection)
        _migrate(connection)
    engine.dispose()


main()
