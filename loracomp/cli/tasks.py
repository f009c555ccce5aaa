"""Commands about tasks and their examples, and about policies."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from psycopg.types.json import Jsonb

from loracomp.cli.answering import Waiting, see_to_answers
from loracomp.cli.common import AsJson, emit, emit_json, open_database, remarks
from loracomp.config import load_settings
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError, NotFoundError, RefusedError, UsageError
from loracomp.lab.catalogue import SPLITS, entry_names, load_entry, read_examples
from loracomp.registry.examples import Example

task_app = typer.Typer(help="Tasks and their examples.", no_args_is_help=True)
policy_app = typer.Typer(help="Named settings of routing and merging.", no_args_is_help=True)

OTHER_SPLITS_SHOWN = 10
MEASURED = ("task", "base_model", "examples", "adapters", "added", "failed")


@task_app.command("list")
def list_tasks(as_json: AsJson = False) -> None:
    """Tasks, with their numbers of examples, embeddings and active adapters."""
    with open_database() as connection:
        rows = connection.execute(QUERIES["list_tasks"]).fetchall()
    columns = ("name", "family", "train", "embedded", "validation", "active_adapters")
    emit(rows, title="Tasks", as_json=as_json, columns=columns)


@task_app.command("add")
def add_task(
    name: str,
    *,
    family: Annotated[str, typer.Option(help="Kind of task, for reports.")] = "other",
    description: Annotated[str, typer.Option(help="What it asks for, in a sentence.")] = "",
    reader_role: Annotated[str | None, typer.Option(help="Role whose members may retrieve it; else everybody.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a task."""
    from loracomp.registry import tasks

    with open_database() as connection:
        if not tasks.add_task(connection, name, family=family, description=description, reader_role=reader_role):
            raise RefusedError(f"there is a task {name} already: name another, or import examples into it")
    emit([{"task": name, "family": family, "reader_role": reader_role}], title="Added", as_json=as_json)


@task_app.command("restrict")
def restrict_task(
    name: str,
    role: Annotated[str | None, typer.Argument(help="Role; left out, everybody may.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whose jobs may retrieve a task: members of a role, or everybody's."""
    with open_database() as connection:
        connection.execute(QUERIES["restrict_task"], {"task": name, "reader_role": role})
    emit([{"task": name, "reader_role": role}], title="Task", as_json=as_json)


@task_app.command("rename")
def rename_task(name: str, new_name: str, as_json: AsJson = False) -> None:
    """Give a task another name; traces keep the one that it had."""
    with open_database() as connection:
        connection.execute(QUERIES["rename_task"], {"task": name, "new_name": new_name})
    emit([{"task": new_name, "before": name}], title="Renamed", as_json=as_json)


@task_app.command("delete")
def delete_task(
    name: str,
    force: Annotated[
        bool, typer.Option("--force", help="Though an adapter of it is active, or stored traces name it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a task with its examples and adapters."""
    with open_database() as connection:
        rows = connection.execute(QUERIES["delete_task"], {"task": name, "force": force}).fetchall()
    emit(rows, title=f"Deleted: {name}", as_json=as_json)


@task_app.command("delete-examples")
def delete_examples(
    name: str,
    split: Annotated[str | None, typer.Option(help="train, validation or test. Defaults to all of them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Delete a task's examples with their embeddings."""
    with open_database() as connection:
        rows = connection.execute(QUERIES["delete_examples"], {"task": name, "split": split}).fetchall()
    emit([{"task": name, **row} for row in rows], title="Examples", as_json=as_json)


@task_app.command("import")
def import_examples(
    task: Annotated[str, typer.Argument(help="Task: a catalogue entry (piqa, ...), or one of `loracomp task add`.")],
    data: Annotated[
        str | None,
        typer.Argument(
            help="A .jsonl or .csv file (or .gz) of prompt, choices, answer, split, or a folder of such; "
            "or the entry's data set: folder, hub id."
        ),
    ] = None,
    *,
    split: Annotated[list[str] | None, typer.Option(help="Splits of the data set. Defaults to all of them.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples a split at most. Defaults to all.")] = None,
    seed: Annotated[int, typer.Option(help="Of the examples drawn where there is a limit.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Import examples and embed those of the train split. Safe to kill and run again: what is there is not redone."""
    from loracomp.model.loading import resolve_device
    from loracomp.registry import tasks
    from loracomp.registry.base_models import load_registered_encoder
    from loracomp.registry.embeddings import embed_examples

    with open_database() as connection:
        encoder = load_registered_encoder(connection, resolve_device(load_settings().device))
        name, groups = _examples(connection, task, data, split)
        drawn = [example for group in groups for example in tasks.draw(group, limit, seed)]
        report = tasks.import_examples(connection, name, drawn)
        embedded = embed_examples(connection, encoder, name)
    for row in report.other_split[:OTHER_SPLITS_SHOWN]:
        remarks.print(f"left out: {row.source_ref} ({row.split}) stands in split {row.stored_split} already")
    emit([{"task": name, **report.counts, "embedded": embedded}], title="Import", as_json=as_json)


@task_app.command("measure")
def measure_task(
    task: str,
    *,
    rows: Annotated[int | None, typer.Option(min=1, help="Examples at most. Defaults to all.")] = None,
    adapters: Annotated[int, typer.Option(min=1, help="Adapters at most: its own and the nearest tasks'.")] = 30,
    split: Annotated[str, typer.Option(help="Whose rows; jobs retrieve those of train alone.")] = "train",
    base_model: Annotated[str | None, typer.Option(help="Defaults to the database's default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what adapters are worth on a task's examples. Safe to kill and run again: it goes on."""
    from loracomp.registry import measurements
    from loracomp.registry.base_models import find_base_model

    settings = load_settings()
    with open_database() as connection:
        named = find_base_model(connection, base_model or settings.base_model).name
        asked = measurements.measure_task(connection, task, rows=rows, adapters=adapters, split=split, base_model=named)
        if asked["learnt"]:
            remarks.print(f"left out: {asked['learnt']} rows that the task's own adapter has learnt from")

        def state(connection: Connection) -> dict[str, Any]:
            found = measurements.list_measurements(connection, task)
            return next((row for row in found if row["base_model"] == named), {})

        def look(connection: Connection) -> Waiting | None:
            found = state(connection)
            return Waiting(named, found["queued"], found["running"]) if found else None

        left = see_to_answers(connection, settings, look, asked["examples"], "measuring")
        found = state(connection)
    emit([{**found, "added": asked["added"]}], title="Measured", as_json=as_json, columns=MEASURED)
    if left:
        raise LoracompError(f"{left} jobs are left: run `loracomp task measure {task}` to go on")
    if found["failed"]:
        remarks.print(f"{found['failed']} jobs have failed, the last with: {found['last_error']}", markup=False)


def _examples(
    connection: Connection, task: str, data: str | None, splits: list[str] | None
) -> tuple[str, list[Iterable[Example]]]:
    """The task's name, and its examples split by split: of files of one's own, or of a catalogue entry."""
    from loracomp.registry import tasks
    from loracomp.registry.example_files import SPLITS as ALL_SPLITS
    from loracomp.registry.example_files import files_of, read_lines

    if data is not None and _is_ones_own(task, data):
        lines = [line for file in files_of(Path(data).expanduser()) for line in read_lines(file, task)]
        return task, [[line for line in lines if line.split == split] for split in splits or ALL_SPLITS]
    entry = load_entry(task)
    if entry.data_note and not Path(data or entry.dataset_path).expanduser().is_dir():
        remarks.print(f"{entry.task}: {entry.data_note}", markup=False, highlight=False)
    tasks.add_task(connection, entry.task, family=entry.family, description=entry.description)
    chosen = splits or [split for split in SPLITS if split != "train" or entry.training_split]
    return entry.task, [read_examples(entry, split, data) for split in chosen]


def _is_ones_own(task: str, data: str) -> bool:
    """Whether the data are files in our format; else they are a catalogue entry's data set. Raises NotFoundError."""
    from loracomp.registry.example_files import SUFFIXES

    if data.endswith(SUFFIXES):
        return True
    if task in entry_names() or task.endswith((".yaml", ".yml")):
        return False
    path = Path(data).expanduser()
    if path.is_dir():
        return True
    there = "is there, but its name does not end so" if path.exists() else "is not there"
    raise NotFoundError(
        f"task {task} is no catalogue entry, so its examples come from a file ({', '.join(SUFFIXES)}) or a folder of "
        f"such files: {path.absolute()} {there}"
    )


@policy_app.command("list")
def list_policies(as_json: AsJson = False) -> None:
    """Policies, the default first."""
    with open_database() as connection:
        rows = connection.execute(QUERIES["list_policies"], {"name": None}).fetchall()
    columns = ("name", "strategy", "k", "description")
    emit(rows, title="Policies", as_json=as_json, columns=columns)


@policy_app.command("show")
def show_policy(name: str, as_json: AsJson = False) -> None:
    """All settings of a policy."""
    with open_database() as connection:
        rows = connection.execute(QUERIES["list_policies"], {"name": name}).fetchall()
    if not rows:
        raise NotFoundError(f"there is no policy {name}: `loracomp policy list` names those that there are")
    _emit_policy(rows[0], as_json)


@policy_app.command("set")
def set_policy(
    name: str,
    settings: Annotated[list[str], typer.Argument(metavar="SETTING=VALUE...", help="Such as k=30 strategy=ties.")],
    as_json: AsJson = False,
) -> None:
    """Change settings of a policy, or make one: what is not named keeps its value, or takes the default."""
    values = {"name": name, "settings": Jsonb(dict(map(_setting, settings)))}
    with open_database() as connection:
        row = connection.execute(QUERIES["set_policy"], values).fetchone()
    assert row
    _emit_policy(row, as_json)


def _emit_policy(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(row)
    else:
        settings = [{"setting": key, "value": str(value)} for key, value in row.items()]
        emit(settings, title=f"Policy {row['name']}", as_json=False)


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"setting {text!r}: write SETTING=VALUE, such as k=30")
    return key, _number_or_text(value)


def _number_or_text(value: str) -> Any:
    """Numbers as numbers; NaN and infinity stay texts, which the policy's constraints refuse by name."""
    try:
        return json.loads(value, parse_constant=lambda constant: constant)
    except ValueError:
        return value
