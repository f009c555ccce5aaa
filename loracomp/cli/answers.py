"""Commands about declarations: a table gets answers to its rows, and people correct them."""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from difflib import get_close_matches
from importlib.metadata import entry_points
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from psycopg.types.json import Jsonb

from loracomp.cli.adapters import measure_adapter
from loracomp.cli.common import (
    AsJson,
    MaxNewTokens,
    emit,
    fault_of_json,
    open_database,
    print_page,
    remark,
    run_query,
    storable_json,
)
from loracomp.cli.corrections import import_corrections, written_corrections
from loracomp.cli.jobs import see_to
from loracomp.config import load_settings
from loracomp.database.connections import row_of, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, RefusedError, UsageError
from loracomp.registry.adapters import activate_adapter, compare_adapter
from loracomp.registry.base_models import find_base_model

answers_app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the view with the answers, such as ticket_urgency.")]
Source = Annotated[str, typer.Argument(help="A table that you own, with a primary key.")]
Prompt = Annotated[
    str, typer.Argument(help="Prompt for a row; {column} stands for the column's value, and {{ and }} for braces.")
]
Choice = Annotated[
    list[str] | None, typer.Option(help="A possible answer. Repeat the option for each; without it, text is generated.")
]
Describe = Annotated[
    list[str] | None,
    typer.Option(help="What a choice means, in a few words. Repeat it for each choice, in the same order."),
]
POLICY = "Name of the policy that is used until sixteen corrections are measured."
PRIORITY = "Priority of the jobs."
Policy = Annotated[str, typer.Option(help=POLICY)]


def _json_object(text: str) -> Jsonb:
    try:
        given = json.loads(text)
        fault = fault_of_json(given)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(given, dict):
        raise ValueError("it must be a JSON object")
    if fault:
        raise ValueError(f"it {fault}")
    return Jsonb(given)


Filter = Annotated[
    Jsonb | None,
    typer.Option(
        "--filter",
        parser=_json_object,
        metavar="JSON",
        help='Which rows are answered, by column: \'{"status": ["open", "new"]}\'; {} means all rows.',
    ),
]
Tags = Annotated[
    Jsonb | None, typer.Option(parser=_json_object, metavar="JSON", help='Tags of the jobs: \'{"app": "desk"}\'.')
]

Certain = Annotated[
    float | None,
    typer.Option(help="Share of right answers that the view's column `certain` promises, such as 0.95; 0: none."),
]
CertainOf = Annotated[
    list[str] | None,
    typer.Option(
        help="A choice to which the promise applies by itself. Repeat the option for each; '' means all together."
    ),
]

WORTH_TRAINING = 80
"""Number of corrections from which on an adapter trained on them may be better than using them directly
(docs/decisions.md)."""
LISTED = ("name", "state", "open", "answered", "corrected", "before", "after", "certain", "advice")


def _of_declaration(query: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a query about the declaration `name`. If there is none, the error suggests the most similar name."""
    try:
        return run_query(query, values)
    except NotFoundError as error:
        names = [row["name"] for row in run_query(QUERIES["list_answers"], {"name": None, "counted": False})]
        similar = get_close_matches(values["name"], names, 1)
        if not similar or values["name"] in names:
            raise
        raise NotFoundError(f"{error} (did you mean {similar[0]}?)") from None


@answers_app.command("try")
def try_answers(
    source: Source,
    prompt: Prompt,
    *,
    choice: Choice = None,
    describe: Describe = None,
    max_new_tokens: MaxNewTokens = None,
    policy: Policy = "default",
    row_filter: Filter = None,
    patience: Annotated[
        float, typer.Option(help="Seconds to wait for a worker before this process answers.", min=0)
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show the prompts of the first three rows and answer them, and say how many rows there are, without declaring
    anything."""
    request = {"choices": choice, "descriptions": describe, "max_new_tokens": max_new_tokens, "policy": policy}
    with open_database() as connection:
        declared = {"source": source, "prompt": prompt, "filter": row_filter or Jsonb({})}
        prompts = rows_of(connection, QUERIES["try_prompts"], declared)
        if choice is None:
            prompts = [{"prompt": row["prompt"]} for row in prompts]
        asked = [storable_json({**row, **request}) for row in prompts]
        jobs = [row_of(connection, QUERIES["insert_job"], {"job": job})["id"] for job in asked]
        see_to(connection, jobs, patience)
        results = rows_of(connection, QUERIES["job_results"], {"ids": jobs})
        remark(_size(row_of(connection, QUERIES["estimate_answers"], declared)))
    emit(
        results,
        title="Prompts and answers of the first rows",
        as_json=as_json,
        columns=("prompt", "output", "confidence", "error"),
    )


def _size(estimate: dict[str, Any]) -> str:
    """Say in a sentence what a declaration would ask for."""
    about = "about " if estimate["is_estimate"] else ""
    said = f"{about}{estimate['rows']:,} rows with {about}{estimate['prompts']:,} different prompts"
    if estimate["refused"]:
        said += f", of which {estimate['refused']:,} rows would be refused, because their prompt is empty or unusable"
    if estimate["too_long"]:
        said += f"; {estimate['too_long']:,} are probably too long for the base model"
    if estimate["takes"]:
        said += f"; all answers would take about {estimate['takes']} at {estimate['per_minute']:,.0f} rows a minute"
    return said


@answers_app.command("create")
def create_answers(
    name: Name,
    source: Source,
    prompt: Prompt,
    *,
    choice: Choice = None,
    describe: Describe = None,
    max_new_tokens: MaxNewTokens = None,
    policy: Policy = "default",
    priority: Annotated[int, typer.Option(help=PRIORITY, min=-10, max=10)] = 0,
    tags: Tags = None,
    row_filter: Filter = None,
    backfill: Annotated[bool, typer.Option(help="Whether to answer existing rows too.")] = True,
    certain: Certain = None,
    certain_of: CertainOf = None,
    as_json: AsJson = False,
) -> None:
    """Declare that each row of a table, old or new, gets an answer. The view NAME shows the answers."""
    request = {"choices": choice, "descriptions": describe, "max_new_tokens": max_new_tokens, "policy": policy}
    chosen = {"tags": tags or Jsonb({}), "filter": row_filter or Jsonb({}), "backfill": backfill}
    promise = {"certain": certain, "certain_of": certain_of}
    values = {"name": name, "source": source, "prompt": prompt, **request, "priority": priority, **chosen, **promise}
    (row,) = run_query(QUERIES["create_answers"], values)
    emit([row], title="Declared", as_json=as_json)


@answers_app.command("alter")
def alter_answers(
    name: Name,
    *,
    prompt: Annotated[
        str | None, typer.Option(help="Another prompt. Rows whose prompt changes are answered again.")
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(
            help="A possible answer. Repeat the option for each: they replace the current choices, or generated text."
        ),
    ] = None,
    describe: Annotated[
        list[str] | None,
        typer.Option(
            help="What a choice means. Repeat the option for each: they replace the current descriptions. A single ''"
            " leaves the choices without descriptions."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of tokens of generated text, which replaces any choices.", min=1, max=100_000
        ),
    ] = None,
    policy: Annotated[str | None, typer.Option(help=POLICY)] = None,
    priority: Annotated[int | None, typer.Option(help=PRIORITY, min=-10, max=10)] = None,
    tags: Tags = None,
    row_filter: Filter = None,
    paused: Annotated[bool | None, typer.Option("--pause/--resume", help="Make no jobs until you resume.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Answer all rows again, after new rows.")] = False,
    certain: Certain = None,
    certain_of: CertainOf = None,
    as_json: AsJson = False,
) -> None:
    """Change the settings that you give of a declaration. Answers and corrections stay with rows whose prompt stays the
    same."""
    descriptions = [] if describe == [""] else describe
    request = {"choices": choice, "descriptions": descriptions, "max_new_tokens": max_new_tokens, "policy": policy}
    promise = {"certain": certain, "certain_of": [] if certain_of == [""] else certain_of}
    chosen = {"priority": priority, "tags": tags, "filter": row_filter, "paused": paused}
    changes: dict[str, object] = {"prompt": prompt, **request, **chosen, **promise}
    if not again and all(value is None for value in changes.values()):
        raise UsageError("say what to change: `loracomp answers alter --help` lists the options")
    _of_declaration(QUERIES["alter_answers"], {"name": name, **changes, "again": again})
    (declared,) = run_query(QUERIES["list_answers"], {"name": name, "counted": False})
    emit([{"name": name, "state": declared["state"]}], title="Changed", as_json=as_json)


@answers_app.command("list")
def list_answers(as_json: AsJson = False) -> None:
    """List declarations with their progress, and their accuracy before and after corrections."""
    declared = run_query(QUERIES["list_answers"], {"name": None, "counted": True})
    emit(declared, title="Answers", as_json=as_json, columns=LISTED)


@answers_app.command("correct")
def correct_answer(
    name: Name,
    key: Annotated[
        str | None,
        typer.Argument(
            help="Key of the row; put -- before a key such as -5. Without a key, the command lists rows to correct."
        ),
    ] = None,
    answer: Annotated[str | None, typer.Argument(help="The right answer.")] = None,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Withdraw the row's correction.")] = False,
    uncertain: Annotated[
        bool, typer.Option("--uncertain", help="List rows that aren't certain, instead of rows drawn at random.")
    ] = False,
    review: Annotated[
        bool, typer.Option("--review", help="List corrected rows to look at again, because they may be wrong.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, max=10_000, help="How many rows to show.")] = 16,
    as_json: AsJson = False,
) -> None:
    """Correct the answer to a row, or list rows to correct."""
    if key is None and review:
        emit(
            _of_declaration(QUERIES["rows_to_review"], {"name": name, "n": rows}),
            title="To look at again",
            as_json=as_json,
        )
        return
    if key is None and uncertain:
        emit(
            _of_declaration(QUERIES["rows_for_a_person"], {"name": name, "n": rows}),
            title="For a person",
            as_json=as_json,
        )
        return
    if key is None:
        emit(
            _of_declaration(QUERIES["rows_to_correct"], {"name": name, "n": rows, "visitor": None}),
            title="To correct",
            as_json=as_json,
        )
        return
    if undo == (answer is not None):
        raise UsageError(f"give the right answer, or --undo: `loracomp answers correct {name} {key} ANSWER`")
    try:
        _of_declaration(QUERIES["correct_answer"], {"name": name, "key": key, "answer": answer})
    except UsageError as error:
        raise UsageError(f"row {key}: {error}") from error
    emit([{"name": name, "key": key, "correct": answer}], title="Corrected", as_json=as_json)


@answers_app.command("export")
def export_corrections(name: Name) -> None:
    """Print a declaration's corrections as CSV, with the key of each row, its answer and the right answer."""
    with open_database() as connection:
        print_page(written_corrections(connection, name))


@answers_app.command("import")
def import_answers(
    name: Name,
    data: Annotated[
        str, typer.Argument(help="A CSV file with the columns of the key and `correct`; - stands for standard input.")
    ],
    as_json: AsJson = False,
) -> None:
    """Correct the rows of a CSV file, such as `answers export` prints. Lines without a correction change nothing."""
    with ExitStack() as opened:
        file = sys.stdin.buffer if data == "-" else opened.enter_context(Path(data).open("rb"))
        lines = TextIOWrapper(file, encoding="utf-8-sig", newline="")
        done = import_corrections(opened.enter_context(open_database()), name, lines)
    emit([{"name": name, **done._asdict()}], title="Imported", as_json=as_json)
    if done.refused:
        raise RefusedError(f"{done.refused} lines were left out")


@answers_app.command("cancel")
def cancel_answers(name: Name, as_json: AsJson = False) -> None:
    """Pause a declaration and delete its queued and running jobs. Their rows wait until `answers alter --resume`."""
    (row,) = _of_declaration(QUERIES["cancel_answers"], {"name": name})
    emit([{"name": name, **row}], title="Cancelled", as_json=as_json)


@answers_app.command("drop")
def drop_answers(name: Name, as_json: AsJson = False) -> None:
    """Drop a declaration with its view, its answers and its corrections."""
    _of_declaration(QUERIES["drop_answers"], {"name": name})
    emit([{"name": name}], title="Dropped", as_json=as_json)


@answers_app.command("train")
def train_answers(
    name: Name,
    *,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Train even if there are few corrections, and activate the adapter even if it is not better.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the declaration's own adapter on its corrections, measure it, and activate it if it is better."""
    from loracomp.registry.adapter_store import stage_adapter

    declared = _of_declaration(QUERIES["list_answers"], {"name": name, "counted": False})
    if not declared or not declared[0]["corrected"]:
        raise NotFoundError(
            f"{name} has no corrections to train on: `loracomp answers correct {name}` shows rows to correct"
        )
    if declared[0]["corrected"] < WORTH_TRAINING and not force:
        raise UsageError(
            f"{name} has {declared[0]['corrected']} corrections, and using them directly is better than an adapter "
            f"trained on fewer than {WORTH_TRAINING}: correct more rows, or use --force"
        )
    task = declared[0]["task"]
    with redirect_stdout(sys.stderr), TemporaryDirectory() as folder:
        trained = Path(folder) / "trained"
        _training()(task, output=trained, **_start(task, Path(folder) / "start"))
        with open_database() as connection:
            adapter = stage_adapter(connection, trained, task=task)
        measure_adapter(f"{adapter.name}@{adapter.version}")
    with open_database() as connection:
        by_itself = row_of(connection, QUERIES["compare_with_corrections"], {"adapter_id": adapter.id})
        measured = [*compare_adapter(connection, adapter.id), {"against": "corrections", **by_itself}]
        is_better = all((each["accuracy"] or 0) > (each["other_accuracy"] or 0) for each in measured)
        if is_better or force:
            activate_adapter(connection, adapter.id)
    row = {
        "name": name,
        "adapter": f"{adapter.name}@{adapter.version}",
        "status": "active" if is_better or force else "staged",
        "right": by_itself["accuracy"],
        "right_by_corrections": by_itself["other_accuracy"],
        "measured": measured,
    }
    columns = ("name", "adapter", "status", "right", "right_by_corrections")
    emit([row], title="Trained", as_json=as_json, columns=columns)


def _start(task: str, folder: Path) -> dict[str, Any]:
    """Return options that start training from the adapter that is right on most of the task's examples, if there is
    one.

    The adapter is written to `folder`. Starting from it learns more from few rows than starting from nothing
    (docs/decisions.md).
    """
    from loracomp.registry.adapter_store import export_adapter

    with open_database() as connection:
        base = find_base_model(connection, load_settings().base_model).name
        found = rows_of(connection, QUERIES["most_helpful_adapter"], {"task": task, "base_model": base})
        if not found:
            return {}
        (adapter,) = found
        export_adapter(connection, adapter, folder)
    config = adapter["config"]
    shape = {"rank": adapter["rank"], "alpha": adapter["alpha"], "layers": config.get("layers_to_transform")}
    return {"start_from": folder, "target_modules": config["target_modules"], **shape}


def _training() -> Callable[..., None]:
    points = entry_points(group="loracomp.commands", name="train")
    if not points:
        raise UsageError("training is part of loracomp-lab: `pip install loracomp-lab`")
    train: Callable[..., None] = points["train"].load()
    return train
