"""`loracomp demo`: answers example prompts on an embedded Postgres, with the shipped library."""

from importlib.resources import files
from typing import Any

import yaml
from psycopg.types.json import Jsonb

from loracomp.cli.brief import composed, shortened
from loracomp.cli.common import AsJson, console, emit, emit_json, loading, open_database, remarks, say
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
    """Answer 16 example prompts with the shipped library, and print the answers and the adapters' weights."""
    settings = load_settings()
    with remarks.status("starting Postgres"):
        from loracomp.database import schema

        schema.initialize(database_url(settings))
    with open_database() as connection:
        _load_library(connection, settings)
        jobs = [job | {"tags": Jsonb(job["tags"])} for job in demo_jobs()]
        ids = [row_of(connection, QUERIES["insert_with_expected"], job)["id"] for job in jobs]
        _answer(settings, len(ids))
        # Refresh the reports, because otherwise half of the views in bi would be empty for a new user.
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

        worker = open_worker(database_url(settings), settings, drain=True)
    with remarks.status(f"answering {count} prompts"):
        worker.run()


def _show(rows: list[dict[str, Any]]) -> None:
    if console.is_terminal:
        for row in rows:
            say("\n".join(_two_lines(row, console.width)))
    else:
        columns = ("job_id", "prompt", "output", "correct", "policy", "composition", "nearest")
        emit(rows, title="Prompts and their mixes", as_json=False, columns=columns)
    scored = [row for row in rows if row["correct"] is not None]
    remarks.print(f"{sum(row['correct'] for row in scored)} of {len(scored)} answers are as expected.\n")
    remarks.print(f"Why that answer:  loracomp explain {rows[0]['job_id']}", highlight=False)
    remarks.print(_NEXT, highlight=False)


_NEXT = """Ask your own:     loracomp ask 'The soup was cold.' --choice good --choice bad
In SQL:           loracomp db psql -c 'SELECT * FROM loracomp.job_result'"""
_MARKS: dict[bool | None, str] = {True: "✓", False: "✗", None: " "}


def _two_lines(row: dict[str, Any], width: int) -> tuple[str, str]:
    """First line: the job's number and prompt. Second line: whether the answer is as expected, the answer, and the
    adapters' weights."""
    policy = "" if row["policy"] == "default" else f" (policy {row['policy']})"
    mix = f"{composed(row, 2)}{policy}"
    answer = shortened(row["output"] or row["error"] or "", width - 8 - len(mix))
    number = f"{row['job_id']:>4}  "
    prompt = shortened(row["prompt"].removesuffix("\nAnswer:"), width - len(number))
    return f"{number}{prompt}", f"   {_MARKS[row['correct']]}  {answer}  {mix}"
