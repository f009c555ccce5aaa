"""Turns raw results into pages: each table of PAGES is the result of the query below it, run by psql."""

import csv
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from loracomp.database.embedded import psql_path
from loracomp.errors import LoracompError

PAGES = ("evaluation.md", "evaluation_details.md")
"""Pages in docs/: the summary, and the details."""
TABLE = re.compile(
    r"(?P<head><!-- table: (?P<name>[\w-]+) -->\n).*?(?P<foot><!-- end -->.*?^```sql\n(?P<query>.*?)^```)", re.M | re.S
)
COPIED = re.compile(r"(?P<head><!-- table: (?P<name>[\w-]+) -->\n).*?(?P<foot><!-- end -->)", re.S)
NUMBER = re.compile(r"[-+]?[\d.,]*\s*%?")


SCRIPT = Path(__file__).with_name("report.sql")
"""Loads the raw results and makes the views that the pages' queries read."""


def write_report(url: str, root: Path) -> None:
    """Load the raw results into schema report of a database; fill PAGES, their tables in README, and the plots.

    Raises LoracompError with psql's message if a query fails.
    """
    run_sql(url, SCRIPT.read_text(), root)
    for page in PAGES:
        copy_tables(root / "README.md", fill_page(url, root / "docs" / page, root))
    from .plots import draw_plots  # noqa: PLC0415  matplotlib takes a second to import

    draw_plots(lambda query: query_rows(url, query, root), root / "docs" / "evaluation")


def fill_page(url: str, page: Path, root: Path) -> dict[str, str]:
    """Put each query's result between the marks above it; returns the tables by their names."""
    tables: dict[str, str] = {}

    def fill(match: re.Match[str]) -> str:
        tables[match["name"]] = as_markdown(run_sql(url, match["query"], root))
        return match["head"] + tables[match["name"]] + match["foot"]

    page.write_text(TABLE.sub(fill, page.read_text()))
    return tables


def copy_tables(page: Path, tables: dict[str, str]) -> None:
    """Put each of `tables` into the page, between the marks `<!-- table: NAME -->` and `<!-- end -->` with its name."""

    def copy(match: re.Match[str]) -> str:
        return match["head"] + tables[match["name"]] + match["foot"] if match["name"] in tables else match[0]

    page.write_text(COPIED.sub(copy, page.read_text()))


def query_rows(url: str, query: str, root: Path) -> list[dict[str, str]]:
    """Rows of a query, as text."""
    header, *lines = run_sql(url, query, root)
    return [dict(zip(header, line, strict=True)) for line in lines]


def run_sql(url: str, source: str, root: Path) -> list[list[str]]:
    """Run a script with psql in the repository's root; returns header and rows of its last query."""
    command = [str(psql_path()), url, "-X", "-q", "--csv", "-v", "ON_ERROR_STOP=1", "-f", "-"]
    done = subprocess.run(command, input=source, cwd=root, text=True, capture_output=True, check=False)
    if done.returncode:
        raise LoracompError(f"psql: {done.stderr.strip()}\n{source}")
    return list(csv.reader(done.stdout.splitlines()))


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns of numbers aligned right."""
    if len(rows) < 2:
        return "(nothing measured yet)\n"
    header, *lines = rows
    columns = list(zip(*lines, strict=True))
    marks = ["---:" if all(NUMBER.fullmatch(cell) for cell in column) else "---" for column in columns]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, marks, *lines))
