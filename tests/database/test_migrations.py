"""Migrations by alembic's own command: from nothing and back to nothing, and that they lead to loracomp.tables."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from loracomp.database import connections as db
from loracomp.database import revision, schema
from loracomp.database.tables import metadata
from loracomp.errors import SchemaMismatchError
from loracomp.model.encoder import Encoder
from loracomp.registry.embeddings import embed_examples
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.tasks import add_rows, add_task

ROOT = Path(__file__).parents[2]

# Whatever depends on anything, but for what is named by numbers; and functions with their text.
OBJECTS = """
SELECT DISTINCT pg_describe_object(classid, objid, objsubid) AS object FROM pg_depend
WHERE pg_describe_object(classid, objid, objsubid) !~ 'pg_toast|pg_temp|RI_ConstraintTrigger'
UNION
SELECT format('schema %s', nspname) FROM pg_namespace WHERE nspname !~ '^pg_'
UNION
SELECT format('%s: %s', p.oid::regprocedure, pg_get_functiondef(p.oid)) FROM pg_proc AS p
WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi')
ORDER BY 1
"""

DEFINITIONS = {
    "constraint": """
        SELECT format('%s: %s', conrelid::regclass, conname) AS name, pg_get_constraintdef(oid) AS definition
        FROM pg_constraint WHERE connamespace = 'loracomp'::regnamespace
    """,
    "index": """
        SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
        FROM pg_index JOIN pg_class ON oid = indrelid
        WHERE relnamespace = 'loracomp'::regnamespace AND relkind IN ('r', 'p')
    """,
    "column": """
        SELECT format('%s.%s', attrelid::regclass, attname) AS name, jsonb_build_object(
            'type', format_type(atttypid, atttypmod), 'not null', attnotnull, 'identity', attidentity,
            'storage', attstorage, 'statistics', nullif(attstattarget, -1), 'default', pg_get_expr(adbin, adrelid),
            'comment', col_description(attrelid, attnum)
        ) AS definition
        FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'loracomp'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0
    """,
    "table": """
        SELECT oid::regclass::text AS name, jsonb_build_object(
            'kind', relkind, 'options', reloptions, 'partitioned', pg_get_partkeydef(oid),
            'comment', CASE WHEN relkind <> 'S' THEN obj_description(oid, 'pg_class') END
        ) AS definition
        FROM pg_class WHERE relnamespace = 'loracomp'::regnamespace AND relkind IN ('r', 'p', 'S')
    """,
}


def alembic(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a person would run it, in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT, env={**os.environ, "LORACOMP_DATABASE_URL": url}, text=True, capture_output=True, check=False,
    )  # fmt: skip


def succeeds(url: str, *arguments: str) -> str:
    done = alembic(url, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def objects(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(OBJECTS)]


@pytest.mark.parametrize("arguments", [("upgrade", "head"), ("stamp", "base")])
def test_alembic_by_itself_changes_nothing(empty_database: str, database: str, arguments: tuple[str, str]) -> None:
    url = empty_database if arguments[0] == "upgrade" else database
    before = objects(url)
    done = alembic(url, *arguments)
    assert done.returncode != 0
    assert "run `loracomp init`" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert objects(url) == before


def test_check_finds_nothing_to_do_and_no_command_that_only_looks_changes_anything(database: str) -> None:
    before = objects(database)
    assert "No new upgrade operations detected" in succeeds(database, "check")
    assert "(head)" in succeeds(database, "current")
    succeeds(database, "history")
    assert objects(database) == before


def test_looking_at_an_empty_database_leaves_it_empty(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute("CREATE EXTENSION vector")
    before = objects(empty_database)
    succeeds(empty_database, "current")
    assert objects(empty_database) == before


@pytest.fixture
def described(empty_database: str) -> str:
    """URL of a database made from loracomp.database.tables alone."""
    with psycopg.connect(empty_database) as connection:
        connection.execute("CREATE EXTENSION vector; CREATE SCHEMA loracomp")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(empty_database))
    metadata.create_all(engine)
    engine.dispose()
    return empty_database


def test_migrations_lead_to_what_the_tables_describe(database: str, described: str) -> None:
    assert definitions(database) == definitions(described)


def definitions(url: str) -> dict[tuple[str, str], Any]:
    with db.connect(url) as connection:
        connection.execute("SET search_path = public, pg_catalog")
        return {
            (kind, row["name"]): row["definition"]
            for kind, query in DEFINITIONS.items()
            for row in connection.execute(query)
            if "alembic_version" not in row["name"]
        }


def test_a_change_of_the_encoder_leaves_these_tables(database: str, minilm: Encoder, shorter: Encoder) -> None:
    set_encoder(database, minilm)
    with db.connect(database) as connection:
        connection.execute("GRANT SELECT ON loracomp.example_embedding TO loracomp_worker, pg_monitor")
        add_task(connection, "tea")
        row = {"split": "train", "prompt": "Is tea hot?", "label": "yes", "content_hash": "a" * 64}
        add_rows(connection, "tea", [row])
        embed_examples(connection, minilm)
    before = definitions(database), objects(database)
    assert set_encoder(database, shorter) is not None
    changed = definitions(database)
    column = changed["column", "loracomp.example_embedding.embedding"]
    assert column["type"] == "halfvec(192)"
    column["type"] = "halfvec(832)"
    assert (changed, objects(database)) == before
    with db.connect(database) as connection:
        granted = connection.execute("SELECT relacl::text FROM pg_class WHERE relname = 'example_embedding'").fetchone()
    assert granted is not None
    assert "pg_monitor=r/" in granted["relacl"]
    assert "loracomp_worker" not in granted["relacl"], "what sql/ does not grant its own roles is gone, as after init"


def test_a_database_of_before_the_first_release_is_refused_and_left_alone(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE loracomp.alembic_version SET version_num = '0022'")
    before = objects(database)
    for function in (schema.initialize, revision.check_revision):
        with pytest.raises(SchemaMismatchError, match=r"before the first release .* `loracomp db reset`"):
            function(database)
    assert objects(database) == before
