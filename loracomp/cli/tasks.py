"""Commands about tasks and their examples, and about policies."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.answering import Waiting, see_to_answers
from loracomp.cli.common import (
    INTEGER,
    AsJson,
    emit,
    emit_json,
    load_encoder,
    open_database,
    remark,
    run_query,
    storable_json,
)
from loracomp.config import load_settings
from loracomp.database.connections import Connection, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError, NotFoundError, RefusedError, UsageError
from loracomp.registry import tasks
from loracomp.registry.base_models import find_base_model
from loracomp.registry.examples import Example

if TYPE_CHECKING:
    from loracomp.model.encoder import Encoder

task_app = typer.Typer(no_args_is_help=True)
policy_app = typer.Typer(no_args_is_help=True)

OTHER_SPLITS_SHOWN = 10
COUNTED = ("examples", "adapters", "queued", "running", "failed")
ADAPTERS_SHOWN = 5
COMPARED = ("adapter", "n", "base_accuracy", "accuracy", "gain", "p")
REWORDED = ("wording", "prompts", "finding", "share", "instead")
MEASURED = ("task", "base_model", "examples", "adapters", "added", "failed")

BaseModelName = Annotated[str | None, typer.Option(help="Name of the base model. Defaults to the database's default.")]
Splits = Annotated[
    list[str] | None,
    typer.Option("--split", help="Split of the data to import. May be repeated; defaults to all splits."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, max=INTEGER, help="Maximum number of examples of each split. Defaults to all.")
]
Seed = Annotated[int, typer.Option(min=0, max=INTEGER, help="Seed for the random choice of examples by --limit.")]


@task_app.command("list")
def list_tasks(as_json: AsJson = False) -> None:
    """List tasks with their numbers of examples, embeddings and active adapters."""
    rows = run_query(QUERIES["list_tasks"])
    columns = ("name", "family", "train", "embedded", "validation", "active_adapters")
    emit(rows, title="Tasks", as_json=as_json, columns=columns)


@task_app.command("add")
def add_task(
    name: str,
    *,
    family: Annotated[str, typer.Option(help="Family of the task, by which reports group tasks.")] = "other",
    description: Annotated[str, typer.Option(help="One sentence that says what the task asks for.")] = "",
    reader_role: Annotated[
        str | None, typer.Option(help="Role whose members may use the task in their jobs. Defaults to everybody.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a task."""
    with open_database() as connection:
        if not tasks.add_task(connection, name, family=family, description=description, reader_role=reader_role):
            raise RefusedError(f"task {name} already exists: choose another name, or import examples into it")
    emit([{"task": name, "family": family, "reader_role": reader_role}], title="Added", as_json=as_json)


@task_app.command("delete")
def delete_task(
    name: str,
    force: Annotated[
        bool,
        typer.Option("--force", help="Delete the task even if it has an active adapter, or if traces refer to it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a task with its examples and adapters."""
    rows = run_query(QUERIES["delete_task"], {"task": name, "force": force})
    emit(rows, title=f"Deleted: {name}", as_json=as_json)


@task_app.command("import")
def import_examples(
    task: Annotated[str, typer.Argument(help="Name of a task that `loracomp task add` has added.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="A .jsonl or .csv file (may be .gz) with prompt, choices, label, split, or a folder of such files."
        ),
    ],
    *,
    split: Splits = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Import examples, and embed the examples of the train split. If it is interrupted, run it again to continue."""
    from loracomp.registry.example_files import SPLITS, read_files

    wanted = split or SPLITS
    lines = read_files(data.expanduser(), task)
    groups = [[line for line in lines if line.split == each] for each in wanted]
    if not (all if split else any)(groups):
        raise NotFoundError(f"{data} has no row of split {' or '.join(wanted)}")
    with open_database() as connection:
        import_groups(connection, task, groups, limit=limit, seed=seed, as_json=as_json)


def import_groups(
    connection: Connection,
    task: str,
    groups: Iterable[Iterable[Example]],
    *,
    limit: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Import at most `limit` examples of each group, embed the train examples, and print the numbers of examples."""
    drawn = [row for group in groups for row in tasks.draw(group, limit, seed)]
    counts = _import_and_embed(connection, load_encoder(connection), task, drawn)
    emit([{"task": task, **counts}], title="Import", as_json=as_json)


def _import_and_embed(
    connection: Connection, encoder: "Encoder", task: str, examples: Iterable[Example]
) -> dict[str, int]:
    """Import examples and embed the train examples; returns how many had each outcome, and how many were embedded."""
    from loracomp.registry.embeddings import embed_examples

    report = tasks.import_examples(connection, task, examples)
    embedded = embed_examples(connection, encoder, task)
    for source_ref, split, stored in report.other_split[:OTHER_SPLITS_SHOWN]:
        remark(f"left out: {source_ref} ({split}) is already in split {stored}")
    return {**report.counts, "embedded": embedded}


@task_app.command("measure")
def measure_task(
    task: str,
    *,
    rows: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Maximum number of examples to measure. Defaults to all.")
    ] = None,
    adapters: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Maximum number of adapters: the task's own and those of the nearest tasks."
        ),
    ] = 30,
    split: Annotated[str, typer.Option(help="Split of the examples. Routing uses only train examples.")] = "train",
    base_model: BaseModelName = None,
    as_json: AsJson = False,
) -> None:
    """Measure how much adapters help on a task's examples. Can be interrupted; run it again to continue."""
    from loracomp.registry import measurements

    settings = load_settings()
    with open_database() as connection:
        named = find_base_model(connection, base_model or settings.base_model).name
        queued = measurements.measure_task(
            connection, task, rows=rows, adapters=adapters, split=split, base_model=named
        )
        if queued["learnt"]:
            remark(f"left out: {queued['learnt']} rows that the task's own adapter was trained on")

        def state(connection: Connection) -> dict[str, Any]:
            found = measurements.list_measurements(connection, task)
            none = {"task": task, "base_model": named, **dict.fromkeys(COUNTED, 0)}
            return next((row for row in found if row["base_model"] == named), none)

        def look(connection: Connection) -> Waiting:
            found = state(connection)
            return Waiting(named, found["queued"], found["running"])

        left = see_to_answers(connection, settings, look, queued["examples"], "measuring")
        found = state(connection)
        compared = rows_of(connection, QUERIES["compare_with_base"], {"task": task, "base_model": named})
    row = {**found, "added": queued["added"], "measured": compared}
    emit([row], title="Measured", as_json=as_json, columns=MEASURED)
    if not as_json:
        shown = compared[:ADAPTERS_SHOWN]
        title = f"{len(shown)} of {len(compared)} adapters against the base model (all: bi.transfer)"
        emit(shown, title=title, as_json=False, columns=COMPARED)
    if left:
        raise LoracompError(f"{left} jobs are left: run `loracomp task measure {task}` to go on")
    if found["failed"]:
        remark(f"{found['failed']} jobs have failed, the last with: {found['last_error']}")


@task_app.command("reword")
def reword_task(
    task: str,
    *,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Another wording, with {text}, {question}, {choices}, {1}, {2} ... or {prompt}. May be repeated; "
            "defaults to built-in rules."
        ),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(metavar="CHOICE=WORD", help="Another word for a choice, in the templates. May be repeated."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A file of whole prompts to check, in the format of `task import`.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, max=INTEGER, help="Maximum number of prompts in each wording.")] = 30,
    add: Annotated[
        bool, typer.Option("--import", help="Import train examples in these wordings, and check afterwards.")
    ] = False,
    base_model: BaseModelName = None,
    as_json: AsJson = False,
) -> None:
    """Put a task's prompts in other words, and show how many of them still find the task's adapter.

    A prompt finds the adapter if the default policy gives it more than half of the mix. No model answers.
    """
    from loracomp.registry import rewording, wordings
    from loracomp.registry.example_files import read_files

    if choice and not template:
        raise UsageError("--choice needs --template, which says how the prompts are worded with these choices")
    pairs = [_pair(each, "choice", "CHOICE=WORD, such as yes=true") for each in choice or ()]
    others = {own.lower(): word for own, word in pairs} or None
    whole = read_files(data.expanduser(), task) if data else []
    with open_database() as connection:
        examples = rewording.read_examples(connection, task)
        frame = wordings.find_frame([example.prompt for example in examples])
        own = [wordings.own_wording(number, text, frame, others) for number, text in enumerate(template or (), start=1)]
        offered = own or wordings.RULES
        written = rewording.write(rewording.rows_to_check(examples, rows), frame, offered)
        if missing := [wording.name for wording in own if wording.name not in written]:
            raise UsageError(f"{missing[0]} rewords no row: give another word for each choice, or change the template")
        if whole:
            written[str(data)] = tasks.draw(whole, rows)
        encoder = load_encoder(connection)
        if add:
            reworded = rewording.reword_examples(examples, frame, offered)
            imported = _import_and_embed(connection, encoder, task, reworded)
            remark(f"imported: {', '.join(f'{count} {outcome}' for outcome, count in imported.items())}")
        found = rewording.check_wordings(connection, encoder, task, written, base_model)
    shown = [asdict(row) | {"share": row.finding / row.prompts} for row in found]
    emit(shown, title=f"Prompts of {task} in other words", as_json=as_json, columns=REWORDED)
    if not add:
        apart = [wording.name for wording in offered if wording.kept_apart]
        remark(f"the prompts as stored are {frame.template!r}")
        remark(
            f"`loracomp task reword {task} --import` imports train examples in these wordings, so that they are found"
            + (f"; {wordings.listed(apart)} are kept apart, to show what that brings" if apart else "")
        )
    if all(example.split == "train" for example in examples):
        remark("these are train rows, which find themselves; rows of split test would show what other prompts find")


@policy_app.command("list")
def list_policies(as_json: AsJson = False) -> None:
    """List policies, the default first."""
    rows = run_query(QUERIES["list_policies"], {"name": None})
    columns = ("name", "strategy", "k", "description")
    emit(rows, title="Policies", as_json=as_json, columns=columns)


@policy_app.command("show")
def show_policy(name: str, as_json: AsJson = False) -> None:
    """Show all settings of a policy."""
    rows = run_query(QUERIES["list_policies"], {"name": name})
    if not rows:
        raise NotFoundError(f"there is no policy {name}: `loracomp policy list` shows the existing ones")
    _emit_policy(rows[0], as_json)


@policy_app.command("set")
def set_policy(
    name: str,
    settings: Annotated[list[str], typer.Argument(metavar="SETTING=VALUE...", help="For example k=30 strategy=ties.")],
    as_json: AsJson = False,
) -> None:
    """Change settings of a policy, or create a policy. The other settings keep their values, or get the defaults."""
    values = {"name": name, "settings": storable_json(dict(map(_setting, settings)))}
    (row,) = run_query(QUERIES["set_policy"], values)
    _emit_policy(row, as_json)


def _emit_policy(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(row)
    else:
        settings = [{"setting": key, "value": str(value)} for key, value in row.items()]
        emit(settings, title=f"Policy {row['name']}", as_json=False)


def _setting(text: str) -> tuple[str, Any]:
    key, value = _pair(text, "setting", "SETTING=VALUE, such as k=30")
    return key, _number_or_text(value)


def _pair(text: str, name: str, form: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"{name} {text!r}: write {form}")
    return key, value


def _number_or_text(value: str) -> Any:
    """Return the value as a number if it is one, otherwise as text; NaN and infinity stay text, so that SQL refuses
    them."""
    try:
        return json.loads(value, parse_constant=lambda constant: constant)
    except (ValueError, RecursionError):
        return value
