"""What every command shares: the database, tables for people, JSON for machines."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loracomp.config import load_settings
from loracomp.database.connections import Connection, connect, translated_errors
from loracomp.database.embedded import database_url
from loracomp.database.schema import check_revision

console = Console()
"""For results; progress and remarks go to `remarks`."""
remarks = Console(stderr=True)
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""By terminals, in a text that may be anybody's: control characters, and what turns its direction."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@contextmanager
def open_database() -> Iterator[Connection]:
    """An autocommit connection to the settings' database, at this release's schema; errors come in our words."""
    url = database_url(load_settings())
    check_revision(url)
    with translated_errors(), connect(url, application_name="loracomp") as connection:
        yield connection


def emit(rows: Sequence[Mapping[str, Any]], *, title: str, as_json: bool, columns: Sequence[str] = ()) -> None:
    """Print rows as a table, of the `columns` that people want where they are named, or whole as one JSON array."""
    if as_json:
        emit_json(list(rows))
        return
    if not rows:
        console.print(f"[dim]{title}: none[/dim]")
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns or rows[0]:
        numeric = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(shown(row[column]) for column in columns or row))
    console.print(table)


def emit_json(value: object) -> None:
    """Print a value as JSON; what JSON has no type for (times, decimals) as text."""
    json.dump(value, sys.stdout, default=str, ensure_ascii=False, indent=2)
    sys.stdout.write("\n")


def shown(value: object) -> str:
    """A cell's text for people."""
    match value:
        case None:
            return "[dim]-[/dim]"
        case float():
            return f"{value:.3f}"
        case list() | tuple():
            return escape(harmless(", ".join(map(str, value))))
        case _:
            return escape(harmless(str(value)))


def harmless(text: str) -> str:
    """The text with a mark for each character that a terminal would obey; line ends stay."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)
