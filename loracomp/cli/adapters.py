"""Commands about adapters, and about libraries of them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from loracomp.cli.answering import Waiting, see_to_answers
from loracomp.cli.common import AsJson, emit, load_encoder, open_database, remark, run_query
from loracomp.config import load_settings
from loracomp.database.connections import Connection, row_of
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError, NotFoundError, RefusedError
from loracomp.registry import adapters
from loracomp.registry.base_models import find_base_model

adapter_app = typer.Typer(no_args_is_help=True)
library_app = typer.Typer(no_args_is_help=True)

BaseModelName = Annotated[str | None, typer.Option(help="Name of the base model. Defaults to the database's default.")]
ROWS_REWORDED = 8
"""Number of a task's rows that are put in other words when its adapter is activated, which takes a few seconds."""
COMPARED = ("against", "n", "accuracy", "other_accuracy", "gain", "p")
Reference = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="Name of the adapter. Without @VERSION: its newest version.")
]


@adapter_app.command("list")
def list_adapters(as_json: AsJson = False) -> None:
    """List the adapters of all statuses, newest version first."""
    rows = run_query(QUERIES["list_adapters"])
    columns = ("adapter_id", "adapter", "status", "task", "base_model", "rank")
    emit(rows, title="Adapters", as_json=as_json, columns=columns, once=("base_model", "rank"))


@adapter_app.command("stage")
def stage_adapter(
    folder: Annotated[Path, typer.Argument(help="PEFT folder with adapter_config.json and adapter_model.safetensors.")],
    *,
    task: Annotated[str, typer.Option(help="Task that the adapter was trained for.")],
    name: Annotated[str | None, typer.Option(help="Name of the adapter. Defaults to the task's name.")] = None,
    base_model: BaseModelName = None,
    activate: Annotated[bool, typer.Option("--activate", help="Activate the adapter after staging it.")] = False,
    any_base: Annotated[
        bool,
        typer.Option("--any-base", help="Accept an adapter whose config names another base model, if its shapes fit."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check an adapter and store it as the next version of its name. Jobs use it once it is activated."""
    from loracomp.registry import adapter_store

    with open_database() as connection:
        staged = adapter_store.stage_adapter(
            connection, folder, task=task, name=name, base_model=base_model, any_base=any_base
        )
        measured = _activate(connection, staged.id) if activate else ()
        _show(connection, f"{staged.name}@{staged.version}", base_model, as_json, measured)
        if activate:
            _say_what_finds(connection, task, base_model)


@adapter_app.command("activate")
def activate_adapter(
    reference: Reference,
    base_model: BaseModelName = None,
    force: Annotated[
        bool, typer.Option("--force", help="Activate the adapter even if it is worse on measured examples.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an adapter the active one of its task. The same transaction retires the one that was active before."""
    with open_database() as connection:
        found = adapters.find_adapter(connection, reference, base_model)
        measured = _activate(connection, found["id"], force=force)
        _show(connection, reference, base_model, as_json, measured)
        _say_what_finds(connection, found["task"], base_model)


@adapter_app.command("retire")
def retire_adapter(reference: Reference, base_model: BaseModelName = None, as_json: AsJson = False) -> None:
    """Retire an adapter: jobs stop using it. It stays stored for replay, and can be activated again."""
    with open_database() as connection:
        adapters.retire_adapter(connection, adapters.find_adapter(connection, reference, base_model)["id"])
        _show(connection, reference, base_model, as_json)


@adapter_app.command("delete")
def delete_adapter(
    reference: Reference,
    base_model: BaseModelName = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Delete the adapter even if it is active, or if a trace or a waiting job refers to it."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete an adapter and its weights. To stop using it but keep it for replay, retire it instead."""
    values = {"adapter": reference, "base_model": base_model, "force": force}
    rows = run_query(QUERIES["delete_adapter"], values)
    emit(rows, title=f"Deleted: {reference}", as_json=as_json)


@adapter_app.command("measure")
def measure_adapter(
    reference: Reference,
    *,
    tasks: Annotated[
        int, typer.Option(min=1, max=1000, help="Maximum number of tasks: the adapter's own and the nearest ones.")
    ] = 30,
    base_model: BaseModelName = None,
    as_json: AsJson = False,
) -> None:
    """Measure an adapter on the examples on which other adapters were measured before.

    If the command is interrupted, run it again to continue.
    """
    from loracomp.registry.measurements import list_measurements

    with open_database() as connection:
        base = find_base_model(connection, base_model).name
        found = adapters.find_adapter(connection, reference, base)
        queued = row_of(connection, QUERIES["measure_adapter"], {"adapter_id": found["id"], "tasks": tasks})

        def look(connection: Connection) -> Waiting:
            rows = [row for row in list_measurements(connection) if row["base_model"] == base]
            return Waiting(base, sum(row["queued"] for row in rows), sum(row["running"] for row in rows))

        left = see_to_answers(connection, load_settings(), look, queued["added"], "measuring")
        measured = adapters.compare_adapter(connection, found["id"])
    row = {"adapter": f"{found['name']}@{found['version']}", **queued}
    emit([row | {"measured": measured}], title="Measured", as_json=as_json, columns=tuple(row))
    _show_measured(measured, as_json)
    if left:
        raise LoracompError(f"{left} jobs are left: run `loracomp adapter measure {reference}` again to continue")


@adapter_app.command("export")
def export_adapter(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="Folder to write, which must be new or empty.")],
    base_model: BaseModelName = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter to a folder that PEFT can load. The safetensors file is the same as the staged one."""
    from loracomp.registry import adapter_store

    with open_database() as connection:
        adapter_store.export_adapter(connection, adapters.find_adapter(connection, reference, base_model), folder)
        _show(connection, reference, base_model, as_json)


@library_app.command("load")
def load_library(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of the library. Defaults to the shipped library.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load a library's tasks, adapters and embedded examples into the database. Running it again is safe."""
    from loracomp.registry import library

    with open_database() as connection:
        report = library.load_library(connection, folder, settings=load_settings())
    emit([asdict(row) for row in report], title="Library", as_json=as_json)


def _activate(connection: Connection, adapter_id: int, *, force: bool = False) -> list[dict[str, Any]]:
    """Activate an adapter; returns how it compares with the base model and with the version active before."""
    measured = adapters.compare_adapter(connection, adapter_id)
    adapters.activate_adapter(connection, adapter_id, force=force)
    return measured


def _say_what_finds(connection: Connection, task: str, base_model: str | None) -> None:
    """Print how many prompts of a task find its adapter if they are put in other words."""
    from loracomp.registry import rewording, wordings

    try:
        examples = rewording.read_examples(connection, task)
        encoder = load_encoder(connection)
    except (NotFoundError, RefusedError):  # no texts, as in a library, or no encoder
        return
    frame = wordings.find_frame([example.prompt for example in examples])
    written = rewording.write(rewording.rows_to_check(examples, ROWS_REWORDED), frame, wordings.RULES)
    _, *found = rewording.check_wordings(connection, encoder, task, written, base_model)
    remark(
        f"of {sum(row.prompts for row in found)} prompts in other words, {sum(row.finding for row in found)} find this "
        f"adapter: `loracomp task reword {task}` shows where the other prompts go, and imports examples in other words"
    )


def _show(
    connection: Connection,
    reference: str,
    base_model: str | None,
    as_json: bool,
    measured: Sequence[dict[str, Any]] = (),
) -> None:
    row = adapters.find_adapter(connection, reference, base_model)
    columns = ("name", "version", "status", "rank", "alpha", "scaling", "byte_count")
    emit([row | {"measured": measured}], title="Adapter", as_json=as_json, columns=columns)
    if measured:
        _show_measured(measured, as_json)


def _show_measured(measured: Sequence[dict[str, Any]], as_json: bool) -> None:
    if not as_json:
        emit(
            measured,
            title="On its task, against the base model and the active version",
            as_json=False,
            columns=COMPARED,
        )
