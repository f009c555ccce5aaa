"""pgspot over every statement that makes a database: migrations and sql/.

What it says of the catalogue as it then stands, functions with their owner's rights above all, test_breakouts.py holds.
"""

import re
import subprocess
import sys
from pathlib import Path

from loracomp.database import script

# Codes of pgspot that are not looked at, each with the reason.
EXEMPT = {
    "PS001": "operators: the path has pg_catalog and loracomp alone, and nobody but the owner may create there",
    "PS005": "bodies that are bound when they are made, and then inlined; test_overloads.py looks at all others",
    "PS009": "simple CASE: an operator like those of PS001",
    "PS010": "our schemas IF NOT EXISTS: init has refused those of others",
    "PS016": "functions: as PS001",
    "PS017": "types and tables without a schema: as PS001",
}
# It reads neither; their names were bound when they were made, whatever the path of whoever calls them.
BOUND = re.compile(r"^(?:BEGIN ATOMIC.*?^END;|RETURN [^;]*;?)$", re.DOTALL | re.MULTILINE)


def spot(source: str, folder: Path) -> list[str]:
    """Findings, each with its code."""
    file = folder / "source.sql"
    file.write_text(source)
    # It gives up at the first variable of a table's type, and with it the rest of the file.
    command = [str(Path(sys.executable).parent / "pgspot"), "--no-plpgsql", str(file)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert re.search(r"Unknown: 0\s*$", done.stdout), done.stdout[-500:] + done.stderr  # it read to the end
    return [line for line in done.stdout.splitlines() if line.startswith("PS")]


def test_pgspot_finds_nothing_that_is_not_exempt(tmp_path: Path) -> None:
    created = "CREATE SCHEMA loracomp;"  # begin() does so in a DO, which pgspot does not read
    source = BOUND.sub("AS '';", "".join([script.begin().sql, created, *(step.sql for step in script.steps(None))]))
    assert source.count("CREATE TABLE") >= 15 and source.count("CREATE FUNCTION") >= 90
    findings = spot(source, tmp_path)
    assert [finding for finding in findings if finding.partition(":")[0] not in EXEMPT] == []
    assert {finding.partition(":")[0] for finding in findings} == set(EXEMPT), "an exemption that nothing needs"


def test_it_would_find_what_is_wrong(tmp_path: Path) -> None:
    wrong = """
    CREATE OR REPLACE FUNCTION public.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT g()';
    CREATE SCHEMA IF NOT EXISTS loracomp;
    """
    assert {finding.partition(":")[0] for finding in spot(wrong, tmp_path)} >= {"PS003", "PS010"}
