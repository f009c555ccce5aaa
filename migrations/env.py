"""Lets alembic compare a database with the tables' modules, and render migrations as SQL for the installer's script.

Migrations run only inside that script. It drops all functions and views before it runs the migrations, and creates them
again afterwards.
"""

from typing import Any

import psycopg
from alembic import context
from alembic.util import CommandError
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import NullPool, create_engine

from loracomp.config import load_settings
from loracomp.database import connections
from loracomp.database.embedded import database_url
from loracomp.database.tables import SCHEMA, RoleName, metadata
from loracomp.errors import LoracompError


def _same_type(_context: Any, _inspected: Any, _column: Any, inspected_type: Any, metadata_type: Any) -> bool | None:
    # Ignore two differences: `loracomp init` sets the dimension of the vectors' columns to that of the encoder, and
    # SQLAlchemy reflects columns of type `name` as strings.
    return False if isinstance(metadata_type, HALFVEC | RoleName) else None


def _ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "schema" or name == SCHEMA


def render() -> None:
    """Write the migrations as SQL."""
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        output_buffer=context.config.output_buffer,
        version_table_schema=SCHEMA,
        transactional_ddl=False,
    )
    context.run_migrations()


def look(url: str) -> None:
    """Run a command that only reads the database, such as check or current."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(connections.with_defaults(url)), poolclass=NullPool
    )
    with connections.translated_errors(), engine.connect() as connection:
        options: dict[str, Any] = {
            "connection": connection,
            "target_metadata": metadata,
            "version_table_schema": SCHEMA,
            "include_schemas": True,
            "include_name": _ours,
            "compare_type": _same_type,
            "compare_server_default": True,
            "dont_mutate": True,
        }
        context.configure(**options)
        plan = context.get_context().opts["fn"]

        def steps(heads: Any, migration_context: Any) -> list[Any]:
            if list(plan(heads, migration_context)):
                raise CommandError("run `loracomp init`, which also drops functions and views and creates them again")
            return []

        # Alembic's own choice of steps, such as upgrade or check, is known once it is configured.
        context.configure(**options, fn=steps)
        context.run_migrations()


if context.is_offline_mode():
    render()
else:
    try:
        look(database_url(load_settings()))
    except LoracompError as error:
        raise CommandError(str(error)) from error
