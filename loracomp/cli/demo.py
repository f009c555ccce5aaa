"""The first run: an embedded Postgres, the shipped library, and prompts written for it."""

from importlib.resources import files
from typing import Any

import yaml
from psycopg.types.json import Jsonb
from rich.table import Table
from rich.text import Text

from loracomp import db, schema
from loracomp.cli.common import AsJson, console, emit_json, open_database, remarks
from loracomp.config import Settings, load_settings
from loracomp.embedded import database_url
from loracomp.queries import QUERIES

COLUMNS: dict[str, Any] = {
    "choices": None,
    "max_new_tokens": None,
    "stop": [],
    "policy": "default",
    "tags": {},
    "expected": None,
}


def demo(as_json: AsJson = False) -> None:
    """Answer a dozen prompts with the shipped library and print answers, mixes and nearest examples."""
    settings = load_settings()
    with remarks.status("starting Postgres"):
        schema.initialize(database_url(settings))
    with open_database() as connection:
        _load_library(connection, settings)
        ids = [_insert(connection, job) for job in _jobs()]
        _answer(settings, len(ids))
        rows = connection.execute(QUERIES["job_results"], {"ids": ids}).fetchall()
    if as_json:
        emit_json(rows)
    else:
        _show(rows)


def _jobs() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(files("loracomp.demo").joinpath("jobs.yaml").read_text())
    return [COLUMNS | job for job in found]


def _insert(connection: db.Connection, job: dict[str, Any]) -> int:
    row = connection.execute(QUERIES["insert_job"], job | {"tags": Jsonb(job["tags"])}).fetchone()
    assert row is not None
    return int(row["id"])


def _load_library(connection: db.Connection, settings: Settings) -> None:
    with remarks.status("loading the library: base model, encoder, adapters, examples (the first time takes a minute)"):
        from loracomp.registry.library import load_library  # noqa: PLC0415  torch takes seconds: say first what is done

        load_library(connection, settings=settings)


def _answer(settings: Settings, count: int) -> None:
    from loracomp.serving import open_worker  # noqa: PLC0415

    with remarks.status("loading the models") as status:
        worker = open_worker(settings, drain=True)
        status.update(f"answering {count} prompts")
        worker.run()


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Prompts and their mixes", title_justify="left", header_style="bold", show_lines=True)
    for heading in ("job", "prompt", "answer", "adapters composed", "nearest examples"):
        table.add_column(heading, overflow="fold")
    table.add_column("norm", justify="right")
    table.add_column("ms", justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    scored = [row for row in rows if row["correct"] is not None]
    console.print(
        f"{sum(row['correct'] for row in scored)} of {len(scored)} as expected. "
        "norm: the mix's size over that of the exact weighted sum. ms: a job's share of its batch.\n"
        f"Why: loracomp explain {rows[0]['job_id']}   Your own: loracomp ask 'Is it late?' --choice yes --choice no   "
        "SQL: loracomp db psql"
    )


def _cells(row: dict[str, Any]) -> list[str | Text]:
    mark = {True: " ✓", False: " ✗", None: ""}[row["correct"]]
    style = {True: "green", False: "red", None: "cyan"}[row["correct"]]
    composition = (
        row["composition"] if row["policy"] == "default" else f"{row['composition']}\n(policy {row['policy']})"
    )
    return [
        str(row["job_id"]),
        Text(_shortened(row["prompt"])),
        Text(f"{(row['output'] or row['error'] or '').strip()}{mark}", style=style),
        (composition or "").replace(" + ", "\n"),
        (row["nearest"] or "").replace(", ", "\n"),
        "-" if row["norm_ratio"] is None else f"{row['norm_ratio']:.2f}",
        f"{sum((row['timings'] or {}).values()) / (row['batch_size'] or 1):.0f}",
    ]


def _shortened(prompt: str, width: int = 90) -> str:
    """A prompt without its template's last line, on one line."""
    text = " ".join(prompt.removesuffix("\nAnswer:").split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
