"""What docs/stability.md calls public, compared with tests/public_surface.txt; columns of bi are in bi_contract.txt.

A line that is gone breaks somebody: bring back what it names, or deprecate it as the page says. Each
release adds what is new, by REWRITE=1.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import typer.main

from loracomp.cli import commands
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.registry.library_files import Manifest
from test_comments import REFERENCE, SIGNATURE

SURFACE = Path(__file__).parents[1] / "public_surface.txt"
INTERNAL = re.compile(r"^## Internal\n.*?(?=^# |\Z)", re.M | re.S)
FUNCTIONS = """
SELECT
    format('%s.%s', p.pronamespace::regnamespace, p.proname) AS function, p.pronargs - p.pronargdefaults AS needed,
    p.proargnames[:p.pronargs] AS names, p.proretset,
    ARRAY(
        SELECT format_type(a.type, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, place) ORDER BY a.place
    ) AS types,
    format_type(p.prorettype, NULL) AS result,
    ARRAY(
        SELECT format('%s %s', a.name, format_type(a.type, NULL))
        FROM unnest(p.proallargtypes, p.proargmodes, p.proargnames) AS a (type, mode, name) WHERE a.mode IN ('o', 't')
    ) AS columns
FROM pg_proc AS p WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi')
"""
COLUMNS = """
SELECT
    format('%s %s', a.attname, format_type(a.atttypid, NULL)) AS said, c.relname AS relation,
    c.relkind = 'v' AS is_view
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
WHERE c.relnamespace = 'loracomp'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped AND (
    c.relkind = 'v' OR c.relname = 'job' AND has_column_privilege('loracomp_submitter', c.oid, a.attnum, 'INSERT')
)
"""


def of_functions(connection: db.Connection, pages: str) -> Iterator[str]:
    documented = {match["function"] for match in SIGNATURE.finditer(pages)}
    for row in connection.execute(FUNCTIONS):
        if row["function"] in documented:
            # Its needed arguments tell a function from others of its name; to need one more would break callers.
            head = f"function {row['function']}({', '.join(row['types'][: row['needed']])})"
            for place, (name, kind) in enumerate(zip(row["names"] or (), row["types"], strict=True), 1):
                yield f"{head} takes {place} {name} {kind}"
            many = "many " if row["proretset"] else ""
            yield from (f"{head} returns {many}{result}" for result in row["columns"] or [row["result"]])


def of_views(connection: db.Connection, pages: str) -> Iterator[str]:
    """Of loracomp, but for those that docs/sql.md calls internal; and what an INSERT of a job may name."""
    public = set(re.findall(r"\w+", INTERNAL.sub("", pages)))
    for row in connection.execute(COLUMNS):
        if not row["is_view"]:
            yield f"insert into loracomp.job {row['said']}"
        elif row["relation"] in public:
            yield f"view loracomp.{row['relation']} has {row['said']}"


def of_commands() -> Iterator[str]:
    app = typer.Typer()
    commands.register(app)
    yield from _of_group("loracomp", typer.main.get_command(app))


def _of_group(path: str, command: Any) -> Iterator[str]:
    for name, part in getattr(command, "commands", {}).items():
        yield from _of_group(f"{path} {name}", part)
    if not hasattr(command, "commands"):
        yield f"command {path}"
        for parameter in command.params:
            yield from (f"command {path} takes {option}" for option in (*parameter.opts, *parameter.secondary_opts))


def of_library() -> Iterator[str]:
    schema = Manifest.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        yield from (f"library.json {part['title']} has {name}" for name in part["properties"])


def test_what_is_public_stays(connection: db.Connection) -> None:
    pages = "".join(page.read_text() for page in REFERENCE)
    present = {
        *of_functions(connection, pages),
        *of_views(connection, pages),
        *of_commands(),
        *(f"setting LORACOMP_{name.upper()}" for name in Settings.model_fields),
        *of_library(),
    }
    kept = set(SURFACE.read_text().splitlines())
    if os.environ.get("REWRITE"):
        SURFACE.write_text("".join(f"{line}\n" for line in sorted(kept | present)))
    assert sorted(kept - present) == [], "docs/stability.md promises these: bring them back, or deprecate them"
