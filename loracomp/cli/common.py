"""Helpers of all commands: open the database, print tables or JSON."""

import codecs
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from psycopg.errors import Diagnostic
from psycopg.types.json import Jsonb
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loracomp.config import load_settings
from loracomp.database.connections import Connection, connect, translated_errors
from loracomp.database.embedded import database_url
from loracomp.database.revision import check_revision
from loracomp.errors import UsageError
from loracomp.model.cpu import collection_paused

if TYPE_CHECKING:
    from loracomp.model.encoder import Encoder
    from loracomp.model.loading import BaseModel

console = Console()
"""Prints results to stdout; progress and remarks go to `remarks`, on stderr."""
remarks = Console(stderr=True)
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal acts on: control characters, and characters that change the direction of text."""
PROSE = ("description", "detail")
"""Columns with sentences, which a table may wrap to PROSE_WIDTH characters."""
PROSE_WIDTH = 30
_NUMBER = re.compile(r"[-+]?[\d.]+|None|-")
_UNSTORABLE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000|[\ud800-\udfff]")
"""What Postgres can't store in JSON: NUL characters, and half surrogate pairs, to which bytes that are not UTF-8 are
read."""

INTEGER, BIGINT = 2**31 - 1, 2**63 - 1
"""The largest numbers of Postgres's types with these names."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="Maximum number of tokens to generate, if there are no choices.", min=1, max=100_000)
]


@contextmanager
def open_database() -> Iterator[Connection]:
    """Open an autocommit connection to the configured database.

    Raises SchemaMismatchError unless it has this release's schema. psycopg's errors become LoracompErrors.
    """
    url = database_url(load_settings())
    check_revision(url)
    with translated_errors(), connect(url, application_name="loracomp") as connection:
        connection.add_notice_handler(_pass_on)
        yield connection


def run_query(query: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Run one query on the configured database; returns its rows."""
    with open_database() as connection:
        return connection.execute(query, parameters).fetchall()


def fault_of_json(value: object) -> str | None:
    """Say why Postgres can't store a value as JSON; None if it can."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return "contains NaN or an infinite number, which JSON does not have: write another number or a text"
    if _UNSTORABLE.search(text):
        return "contains a NUL character, or is not valid UTF-8: Postgres cannot store that"
    return None


def storable_json(values: Mapping[str, Any]) -> Jsonb:
    """The values as one JSON object. Raises UsageError, which names the value, if Postgres can't store one of them."""
    for name, value in values.items():
        if fault := fault_of_json(value):
            raise UsageError(f"{name} {fault}")
    return Jsonb(values)


def _pass_on(notice: Diagnostic) -> None:
    """Print a warning that the database sent."""
    if notice.severity_nonlocalized == "WARNING":
        warn(": ".join(filter(None, [notice.message_primary, notice.message_hint])))


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Within this context, a line on stderr says what is loading, and garbage collection is paused, because loading
    makes hardly any garbage."""
    with remarks.status(what), collection_paused():
        yield


def load_base(source: str, *, revision: str | None = None, device_map: str | None = None) -> "BaseModel":
    """Load a base model, with the device and the precision that the settings name."""
    from loracomp.model.loading import load_base_model, resolve_device

    settings = load_settings()
    return load_base_model(
        source,
        revision=revision,
        device=resolve_device(settings.device, device_map),
        device_map=device_map,
        dtype=settings.dtype,
        cache_dir=settings.home / "models",
    )


def load_encoder(connection: Connection) -> "Encoder":
    """Load the database's encoder on the device that the settings name."""
    from loracomp.model.loading import resolve_device
    from loracomp.registry.embeddings import load_registered_encoder

    return load_registered_encoder(connection, resolve_device(load_settings().device))


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    remark(f"warning: {sentence}")


def remark(text: str) -> None:
    """Print a text on stderr, made `harmless`."""
    remarks.print(harmless(text), markup=False, highlight=False, soft_wrap=True)


def emit(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    as_json: bool,
    columns: Sequence[str] = (),
    once: Sequence[str] = (),
) -> None:
    """Print rows as a table of the named `columns` (default: all), or with all columns as a JSON array.

    On a terminal, a column that has the same value in every row is shown once, below the table; a column of `once` also
    if there is a single row. If stdout is no terminal, each row is one line with tabs between the columns.
    """
    names = list(columns or (rows[0] if rows else ()))
    if as_json:
        emit_json(list(rows))
    elif not rows:
        remarks.print(f"[dim]{_text(title)}: none[/dim]")
    elif not console.is_terminal:
        _emit_lines(rows, names)
    else:
        named = names[1:] if len(rows) > 1 else once
        same = [name for name in named if all(row[name] == rows[0][name] for row in rows)]
        emit_table(rows, [name for name in names if name not in same], title)
        if same:
            said = ", ".join(f"{_text(name.replace('_', ' '))} {shown(rows[0][name])}" for name in same)
            console.print(f"In every row: {said}", highlight=False)


def emit_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> None:
    """Print a table for people, in which only prose is wrapped. If it is too wide, print a line for each cell."""
    console.print(f"[italic]{_text(title)}[/italic]")
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        numeric = all(_NUMBER.fullmatch(str(row[name])) for row in rows)
        prose = name in PROSE
        table.add_column(
            _text(name.replace("_", "\n")),
            justify="right" if numeric else "left",
            no_wrap=not prose,
            max_width=PROSE_WIDTH if prose else None,
        )
    for row in rows:
        table.add_row(*(shown(row[name]) for name in names))
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum > console.width:
        _emit_records(rows, names)
        return
    for column in table.columns:
        column.max_width = None
    console.print(table)


def say(text: str) -> None:
    """Print a text for people, made `harmless`; lines are wrapped only on a terminal."""
    console.print(harmless(text), markup=False, emoji=False, highlight=False, soft_wrap=not console.is_terminal)


def say_or_json(text: str, value: object, as_json: bool) -> None:
    """Print a text for people (unchanged if stdout is no terminal), or a value as JSON."""
    if as_json:
        emit_json(value)
    else:
        typer.echo(harmless(text) if console.is_terminal else text)


def print_page(text: str) -> None:
    """Print an HTML page, an SVG picture or a CSV file, which are in UTF-8 wherever they are read."""
    typer.echo(text.encode())


def _emit_lines(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    typer.echo("\t".join(names))
    for row in rows:
        cells = ("" if row[name] is None else ", ".join(_texts(row[name])) for name in names)
        typer.echo("\t".join(" ".join(harmless(cell).split("\n")) for cell in cells))


def _emit_records(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    width = max(map(len, names))
    for row in rows:
        for name in names:
            label = _text(f"{name.replace('_', ' '):{width}}")
            console.print(f"[bold]{label}[/bold]  {shown(row[name])}", highlight=False)
        console.print()


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


def emit_json(value: object) -> None:
    """Print a value as JSON; what JSON lacks (times, decimals, NaN, infinity) becomes text."""
    is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    json.dump(_finite(value), sys.stdout, default=str, ensure_ascii=not is_utf8, indent=2)
    sys.stdout.write("\n")


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value


def shown(value: object) -> str:
    """The text of a table's cell, with rich markup."""
    match value:
        case None:
            return "[dim]-[/dim]"
        case float():
            return f"{value:.3f}"
        case list() | tuple():
            return _text(", ".join(_texts(value)))
        case _:
            return _text(str(value))


def _text(text: str) -> str:
    """The text in rich markup."""
    return escape(harmless(text))


def harmless(text: str) -> str:
    """The text, in which � replaces each character that a terminal would act on, except line ends."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)
