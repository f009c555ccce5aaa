"""Every table, view, column and function says what it is, in the database and in docs/sql.md."""

import re
import subprocess
from itertools import pairwise
from pathlib import Path

from sqlalchemy import text

from loracomp.database import connections as db
from loracomp.database import embedded, schema
from loracomp.database.sql_objects import inherit_comments, sql_files
from routing_data import add_base_model
from test_docs import blocks

REFERENCE = Path(__file__).parent.parent / "docs" / "sql.md"
ADMIN = REFERENCE.with_name("admin.md")

# alembic_version is alembic's own.
UNCOMMENTED = """
SELECT format('%s.%s', n.nspname, c.relname) AS object
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('loracomp', 'bi') AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relname <> 'alembic_version'
    AND obj_description(c.oid, 'pg_class') IS NULL
UNION ALL
SELECT format('%s.%s.%s', n.nspname, c.relname, a.attname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE n.nspname IN ('loracomp', 'bi') AND c.relkind IN ('r', 'p', 'v', 'm') AND c.relname <> 'alembic_version'
    AND a.attnum > 0 AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL
UNION ALL
SELECT p.oid::regprocedure::text
FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi')
    AND obj_description(p.oid, 'pg_proc') IS NULL
UNION ALL
-- But for those of identity columns.
SELECT format('%s.%s', n.nspname, c.relname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('loracomp', 'bi') AND c.relkind = 'S' AND obj_description(c.oid, 'pg_class') IS NULL
    AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i'))
ORDER BY 1
"""


def test_every_object_has_a_comment(connection: db.Connection) -> None:
    assert [row["object"] for row in connection.execute(UNCOMMENTED)] == []


WRITTEN = re.compile(r"^COMMENT ON COLUMN (\S+)\.(\S+) IS", flags=re.MULTILINE)
COMMENT = """
SELECT col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = to_regclass(:view) AND attname = :column
"""


def test_a_view_inherits_the_comments_of_columns_that_it_passes_on(database: str) -> None:
    """So none that sql/ writes is the one that would be inherited."""
    written = [match for file in sql_files() for match in WRITTEN.findall(file.source)]
    assert len(written) > 100

    def comments() -> list[str | None]:
        return [connection.scalar(text(COMMENT), {"view": view, "column": column}) for view, column in written]

    with schema.installing(database) as connection:
        before = comments()
        for view, column in written:
            connection.exec_driver_sql(f"COMMENT ON COLUMN {view}.{column} IS NULL")
        inherit_comments(connection)
        after = comments()
        connection.rollback()
    inherited = [name for name, own, other in zip(written, before, after, strict=True) if own == other]
    assert inherited == []
    assert None in after and set(after) != {None}


def test_what_a_view_computes_inherits_nothing(database: str) -> None:
    with schema.installing(database) as connection:
        connection.exec_driver_sql("""
            CREATE VIEW bi.made AS
            WITH inside AS (SELECT j.id + 1 AS computed, j.status FROM loracomp.job AS j)
            SELECT i.computed, i.status, j.priority, j.priority + 1 AS one_more
            FROM inside AS i CROSS JOIN loracomp.job AS j;
            CREATE VIEW bi.of_it AS SELECT m.status AS renamed, m.priority::bigint FROM bi.made AS m
        """)
        inherit_comments(connection)
        found = connection.scalars(
            text(
                "SELECT format('%s.%s', attrelid::regclass, attname) FROM pg_attribute"
                " WHERE attrelid IN ('bi.made'::regclass, 'bi.of_it'::regclass) AND attnum > 0"
                " AND col_description(attrelid, attnum) IS NOT NULL ORDER BY 1"
            )
        ).all()
        connection.rollback()
    assert found == ["bi.made.priority", "bi.made.status", "bi.of_it.renamed"]


GRANTED = """
SELECT DISTINCT p.proname AS name, format(
    '%s.%s(%s)', p.pronamespace::regnamespace, p.proname,
    (
        SELECT string_agg(a.name, ', ' ORDER BY a.place)
        FROM unnest(p.proargnames) WITH ORDINALITY AS a (name, place) WHERE a.place <= p.pronargs
    )
) AS call
FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(p.proacl) AS g
WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi') AND g.grantee <> p.proowner
UNION ALL
SELECT relname, relname FROM pg_class WHERE relnamespace::regnamespace::text IN ('loracomp', 'bi') AND relkind = 'v'
"""


def test_docs_have_every_view_and_every_function_that_a_role_may_execute(connection: db.Connection) -> None:
    """With its arguments, or by name alone in the last paragraph: what is not for use elsewhere."""
    words = " ".join(REFERENCE.read_text().split())
    helpers = words.rpartition("not for use elsewhere")[2]
    rows = connection.execute(GRANTED).fetchall()
    assert [row["call"] for row in rows if row["call"] not in words and f"`{row['name']}`" not in helpers] == []


def test_columns_in_the_administrators_docs_are_those_that_psql_prints(
    database: str, connection: db.Connection
) -> None:
    """Its rows are of another database. Each statement is undone."""
    add_base_model(connection)
    shown = [pair for pair in pairwise(blocks(ADMIN)) if [block.language for block in pair] == ["sql", "text"]]
    questions = re.split("^## ", ADMIN.read_text(), flags=re.MULTILINE)[1:]
    assert len(questions) == 20 and all("```text" in question for question in questions)
    source = "".join(f"\\echo =====\nBEGIN;\n{statement.body}ROLLBACK;\n" for statement, _ in shown)
    command = [embedded.psql_path(), "--no-psqlrc", "--quiet", "--dbname", database, "--file", "-"]
    done = subprocess.run(command, input=source, text=True, capture_output=True, check=True)
    assert done.stderr == ""
    printed = done.stdout.split("=====\n")[1:]
    assert [columns(text) for text in printed] == [columns(output.body) for _, output in shown]


def columns(printed: str) -> list[str]:
    """Of a table as psql prints it."""
    return [name.strip() for name in printed.splitlines()[0].split("|")]
