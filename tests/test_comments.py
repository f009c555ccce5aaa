"""Every table, view, column and function says what it is, in the database and in docs/sql.md."""

import re
import subprocess
from itertools import pairwise
from pathlib import Path

from loracomp.database import connections as db
from loracomp.database import embedded
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
