"""Every table, view, column and function says what it is in the database, and views also in docs/sql.md or its pages.

The pages show the signatures of functions as the database has them; REWRITE=1 writes them there.
"""

import os
import re
import subprocess
import textwrap
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from psycopg import errors

from loracomp.database import connections as db
from loracomp.database import embedded
from routing_data import add_base_model
from test_docs import blocks

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = [DOCS / "sql.md", DOCS / "answers.md", *sorted((DOCS / "sql").glob("*.md"))]
ADMIN = DOCS / "admin.md"

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
-- Sequences of identity columns need no comment.
SELECT format('%s.%s', n.nspname, c.relname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('loracomp', 'bi') AND c.relkind = 'S' AND obj_description(c.oid, 'pg_class') IS NULL
    AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i'))
ORDER BY 1
"""


def test_every_object_has_a_comment(connection: db.Connection) -> None:
    assert [row["object"] for row in connection.execute(UNCOMMENTED)] == []


def test_comments_are_copied_by_name_to_columns_without_one(connection: db.Connection) -> None:
    connection.execute("CREATE VIEW bi.made AS SELECT id AS job_id, status, priority + 1 AS priority FROM loracomp.job")
    connection.execute("COMMENT ON COLUMN bi.made.priority IS 'One more.'")
    connection.execute("SELECT loracomp.copy_comments('bi.made', 'loracomp.job')")
    comments = (
        "SELECT attname, col_description(attrelid, attnum) AS text FROM pg_attribute WHERE attrelid = %s::regclass"
    )
    made = {row["attname"]: row["text"] for row in connection.execute(comments, ["bi.made"])}
    of_job = {row["attname"]: row["text"] for row in connection.execute(comments, ["loracomp.job"])}
    assert made == {"job_id": None, "status": of_job["status"], "priority": "One more."}
    with pytest.raises(errors.RaiseException, match=r"job has no comment for a column of (bi\.)?made"):
        connection.execute("SELECT loracomp.copy_comments('bi.made', 'loracomp.job')")


SIGNATURE = re.compile(r"^    (?P<function>(?:loracomp|bi)\.\w+)\(.*(?:\n(?:     |    \)).*)*", re.M)
CASTS = re.compile(r"::[\w. ]+(\[\])*")
WIDTH = 112
NO_BREAK = "\N{NO-BREAK SPACE}"
FUNCTIONS = """
SELECT
    format('%s.%s', p.pronamespace::regnamespace, p.proname) AS function,
    ARRAY(
        SELECT concat_ws(
            ' ', p.proargnames[a.place], format_type(a.type, NULL),
            'DEFAULT ' || pg_get_function_arg_default(p.oid, a.place::integer)
        )
        FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, place) ORDER BY a.place
    ) AS arguments,
    pg_get_function_result(p.oid) AS result,
    ARRAY(
        SELECT format('%s %s', a.name, format_type(a.type, NULL))
        FROM unnest(p.proallargtypes, p.proargmodes, p.proargnames) WITH ORDINALITY AS a (type, mode, name, place)
        WHERE a.mode IN ('o', 't') ORDER BY a.place
    ) AS columns
FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi') ORDER BY function, arguments
"""
VIEWS = "SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text IN ('loracomp', 'bi') AND relkind = 'v'"


def signature(function: str, arguments: list[str], result: str, columns: list[str]) -> str:
    """A function as docs/sql/ shows it: types, defaults and what is returned, broken where a line is too long."""
    arguments = [CASTS.sub("", argument) for argument in arguments]
    head = f"{function}({', '.join(arguments)})"
    if len(head) > WIDTH:
        head = f"{function}(\n" + ",\n".join(f"    {argument}" for argument in arguments) + "\n)"
    if columns:
        result = f"{'record' if result == 'record' else 'TABLE'}({', '.join(columns)})"
    if len(head.splitlines()[-1]) + len(result) < WIDTH:
        return textwrap.indent(f"{head} RETURNS {result}", "    ")
    whole_columns = re.sub(r"(?<!,) ", NO_BREAK, f"RETURNS {result}")  # a line is broken between columns only
    filled = textwrap.fill(whole_columns, WIDTH, initial_indent="    ", subsequent_indent="        ")
    return textwrap.indent(f"{head}\n{filled.replace(NO_BREAK, ' ')}", "    ")


def reference() -> str:
    return "".join(page.read_text() for page in REFERENCE)


def test_docs_show_functions_as_the_database_has_them(connection: db.Connection) -> None:
    signatures = defaultdict(list)
    for row in connection.execute(FUNCTIONS):
        signatures[row["function"]].append(signature(**row))
    if os.environ.get("REWRITE"):
        next_of = {function: iter(found) for function, found in signatures.items()}
        for page in REFERENCE:
            page.write_text(SIGNATURE.sub(lambda match: next(next_of[match["function"]]), page.read_text()))
    shown = defaultdict(list)
    for match in SIGNATURE.finditer(reference()):
        shown[match["function"]].append(match[0])
    assert shown == {function: signatures[function] for function in shown}, "REWRITE=1 writes them into the page"


def test_docs_name_every_view(connection: db.Connection) -> None:
    pages = reference()
    assert [row["relname"] for row in connection.execute(VIEWS) if row["relname"] not in pages] == []


def test_columns_in_the_administrators_docs_are_those_that_psql_prints(
    database: str, connection: db.Connection
) -> None:
    """Its rows come from another database. Each statement is rolled back."""
    add_base_model(connection)
    shown = [pair for pair in pairwise(blocks(ADMIN)) if [block.language for block in pair] == ["sql", "text"]]
    questions = re.split("^## ", ADMIN.read_text(), flags=re.MULTILINE)[1:]
    assert all("```text" in question for question in questions)
    # Some statements warn here, because this database has nothing that they name.
    source = "SET client_min_messages = error;\n"
    source += "".join(f"\\echo =====\nBEGIN;\n{statement.body}ROLLBACK;\n" for statement, _ in shown)
    command = [embedded.psql_path(), "--no-psqlrc", "--quiet", "--dbname", database, "--file", "-"]
    done = subprocess.run(command, input=source, text=True, capture_output=True, check=True)
    assert done.stderr == ""
    printed = done.stdout.split("=====\n")[1:]
    assert [columns(text) for text in printed] == [columns(output.body) for _, output in shown]


def columns(printed: str) -> list[str]:
    """The column names of a table as psql prints it."""
    return [name.strip() for name in printed.splitlines()[0].split("|")]
