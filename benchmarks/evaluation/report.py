"""Makes tables of the raw results: psql runs the queries in tables.sql, one for each table."""

import csv
import re
import subprocess
from pathlib import Path

from benchmarks.pages import as_markdown
from loracomp.database.embedded import psql_path
from loracomp.errors import LoracompError

SCRIPT = Path(__file__).with_name("report.sql")
"""Loads the raw results and creates the views that the queries read."""
TABLES = Path(__file__).with_name("tables.sql")
NAMED = re.compile(r"^-- table: (?P<name>[\w-]+)\n(?P<query>.*?)(?=^-- table: |\Z)", re.M | re.S)


def evaluation_tables(url: str, root: Path) -> dict[str, str]:
    """Load the raw results of a repository into the schema report of a database; returns the tables by name.

    Raises LoracompError with psql's message if a query fails.
    """
    run_sql(url, SCRIPT.read_text(), root)
    queries = NAMED.finditer(TABLES.read_text())
    return {match["name"]: as_markdown(run_sql(url, match["query"], root)) for match in queries}


def run_sql(url: str, source: str, root: Path) -> list[list[str]]:
    """Run a script with psql in the repository's root; returns the header and the rows of its last query."""
    command = [str(psql_path()), url, "-X", "-q", "--csv", "-v", "ON_ERROR_STOP=1", "-f", "-"]
    done = subprocess.run(command, input=source, cwd=root, text=True, capture_output=True, check=False)
    if done.returncode:
        raise LoracompError(f"psql: {done.stderr.strip()}\n{source}")
    return list(csv.reader(done.stdout.splitlines()))
