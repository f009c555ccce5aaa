"""`loracomp demo`: answers example prompts on an embedded Postgres, with the shipped library."""

from importlib.resources import files
from typing import Any

import yaml
from psycopg.types.json import Jsonb
from rich.table import Table
from rich.text import Text

from loracomp.cli.common import AsJson, console, emit_json, emit_table, loading, open_database, remarks
from loracomp.config import Settings, load_settings
from loracomp.database.connections import Connection, row_of
from loracomp.database.embedded import database_url
from loracomp.database.queries import QUERIES

COLUMNS: dict[str, Any] = {
    "choices": None,
    "max_new_tokens": None,
    "stop": [],
    "policy": "default",
    "tags": {},
    "expected": None,
}


def demo(as_json: AsJson = False) -> None:
    """Answer 16 example prompts with the shipped library; print answers, adapters' weights, nearest examples."""
    settings = load_settings()
    with remarks.status("starting Postgres"):
        from loracomp.database import schema

        schema.initialize(database_url(settings))
    with open_database() as connection:
        _load_library(connection, settings)
        jobs = [job | {"tags": Jsonb(job["tags"])} for job in demo_jobs()]
        ids = [row_of(connection, QUERIES["insert_job"], job)["id"] for job in jobs]
        _answer(settings, len(ids))
        # Refresh the reports, because otherwise a new user would find half of the views in bi empty.
        connection.execute(QUERIES["refresh_reports"], {"older_than": "0"})
        rows = connection.execute(QUERIES["job_results"], {"ids": ids}).fetchall()
    if as_json:
        emit_json(rows)
    else:
        _show(rows)


def demo_jobs() -> list[dict[str, Any]]:
    """The demo's jobs, as columns of loracomp.job."""
    found: list[dict[str, Any]] = yaml.safe_load(files("loracomp.cli").joinpath("demo.yaml").read_text())
    return [COLUMNS | job for job in found]


def _load_library(connection: Connection, settings: Settings) -> None:
    with loading("loading the library: base model, encoder, adapters, examples (the first time takes a minute)"):
        from loracomp.registry.library import load_library

        load_library(connection, settings=settings)


def _answer(settings: Settings, count: int) -> None:
    with loading("loading the models"):
        from loracomp.worker.start import open_worker

        worker = open_worker(settings, drain=True)
    with remarks.status(f"answering {count} prompts"):
        worker.run()


def _show(rows: list[dict[str, Any]]) -> None:
    width = min(console.width, 150)
    table = Table(
        title="Prompts and their mixes", title_justify="left", header_style="bold", show_lines=True, width=width
    )
    table.add_column("job", justify="right")
    table.add_column("prompt", ratio=5)
    table.add_column("answer", ratio=2)
    table.add_column("adapters composed, nearest examples", ratio=4)
    table.add_column("norm", justify="right")
    table.add_column("ms", justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    columns = ("job_id", "prompt", "output", "correct", "policy", "composition", "nearest", "norm_ratio", "ms")
    emit_table(table, [row | {"ms": round(_own_ms(row))} for row in rows], columns)
    scored = [row for row in rows if row["correct"] is not None]
    remarks.print(
        f"{sum(row['correct'] for row in scored)} of {len(scored)} as expected. "
        "norm: size of the mix over that of the exact weighted sum. ms: a job's share of its batch.\n"
    )
    remarks.print(f"Why that answer:  loracomp explain {rows[0]['job_id']}", highlight=False)
    remarks.print(_NEXT, highlight=False)


_NEXT = """One of your own:  loracomp ask 'The soup was cold.' --choice good --choice bad
In SQL:           loracomp db psql -c 'SELECT * FROM loracomp.job_result'"""


def _cells(row: dict[str, Any]) -> list[str | Text]:
    mark, style = _MARKS[row["correct"]]
    answer = Text(f"{(row['output'] or row['error'] or '').strip()}{mark}", style=style)
    return [
        str(row["job_id"]),
        Text(_shortened(row["prompt"])),
        answer,
        Text.assemble((str(row["composition"]), "bold"), f" {_policy(row)}\n", (_near(row), "dim")),
        "-" if row["norm_ratio"] is None else f"{row['norm_ratio']:.2f}",
        f"{_own_ms(row):.0f}",
    ]


def _own_ms(row: dict[str, Any]) -> float:
    """A job's share of its batch's steps and of the model's time, in milliseconds."""
    timings: dict[str, float] = row["timings"] or {}
    of_batch = sum(ms for step, ms in timings.items() if step not in ("ready", "predict", "model"))
    return of_batch / (row["batch_size"] or 1) + timings.get("model", 0.0)


_MARKS: dict[bool | None, tuple[str, str]] = {True: (" ✓", "green"), False: (" ✗", "red"), None: ("", "cyan")}


def _policy(row: dict[str, Any]) -> str:
    return "" if row["policy"] == "default" else f"(policy {row['policy']})"


def _near(row: dict[str, Any]) -> str:
    return f"near {row['nearest']}" if row["nearest"] else str(row["fallback"] or "")


def _shortened(prompt: str, width: int = 110) -> str:
    """A prompt without its last line 'Answer:'. A long one loses its middle, because its end contains the question."""
    text = " ".join(prompt.removesuffix("\nAnswer:").split())
    return text if len(text) <= width else f"{text[: width // 2]} … {text[-width // 2 :]}"
