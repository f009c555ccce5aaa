"""Commands about base models and the encoder."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from loracomp.cli.common import AsJson, emit, load_base, open_database, remarks, run_query, say_or_json, warn
from loracomp.config import load_settings
from loracomp.database.connections import Connection, row_of, rows_of
from loracomp.database.embedded import database_url
from loracomp.database.queries import QUERIES
from loracomp.registry.base_models import find_base_model, register_base_model

model_app = typer.Typer(no_args_is_help=True)
encoder_app = typer.Typer(no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or package:NAME.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub. Defaults to main.")]
RegisteredName = Annotated[str, typer.Argument(help="Name of the base model, as `loracomp model list` shows it.")]


@model_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List base models, the default first."""
    rows = run_query(QUERIES["list_base_models"])
    columns = ("name", "is_default", "source", "context_length", "has_chat_template", "active_adapters")
    emit(rows, title="Base models", as_json=as_json, columns=columns)


@model_app.command("add")
def add_model(
    source: Source,
    *,
    name: Annotated[
        str | None, typer.Option(help="Name by which jobs refer to it. Defaults to the last part of the source.")
    ] = None,
    revision: Revision = None,
    default: Annotated[
        bool, typer.Option("--default", help="Make it the default, for jobs that name no base model.")
    ] = False,
    unloaded: Annotated[
        bool, typer.Option("--unloaded", help="Do not load and test it, for a machine with too little memory.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Load a base model, test it, and register it by its name and the sha256 of its weights."""
    from loracomp.composition.trial import try_adapters
    from loracomp.model.loading import describe_base_model
    from loracomp.model.trial import try_out

    settings = load_settings()
    with open_database() as connection:
        if unloaded:
            model = describe_base_model(source, revision=revision, cache_dir=settings.home / "models")
        else:
            with remarks.status("loading the model, to test it"):
                model = load_base(source, revision=revision, device_map=settings.device_map)
                try_out(model)
                modules = try_adapters(model)
            if lacking := sorted(model.modules.keys() - modules.keys()):
                warn(
                    f"loracomp cannot apply adapters to {len(lacking)} modules of this model, such as {lacking[0]}, "
                    "and will refuse adapters for them"
                )
            model = replace(model, modules=modules)
        register_base_model(connection, replace(model, name=name or model.name), make_default=default)
    list_models(as_json)


@model_app.command("default")
def set_default_model(name: RegisteredName, as_json: AsJson = False) -> None:
    """Make a registered base model the default, for jobs that name no base model."""
    run_query(QUERIES["set_default_base_model"], {"name": name})
    list_models(as_json)


@model_app.command("remove")
def remove_model(
    name: RegisteredName,
    force: Annotated[bool, typer.Option("--force", help="Also delete its adapters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a base model. The command refuses if a job refers to it."""
    run_query(QUERIES["remove_base_model"], {"name": name, "force": force})
    list_models(as_json)


@model_app.command("path")
def show_model_path(
    name: Annotated[
        str | None, typer.Argument(help="Name of the base model. Defaults to the database's default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the folder of a base model's weights, from which transformers and PEFT can load it as workers do."""
    from loracomp.model.loading import base_model_folder

    with open_database() as connection:
        base = find_base_model(connection, name)
    folder = base_model_folder(base.source, revision=base.revision, cache_dir=load_settings().home / "models")
    say_or_json(str(folder), {"name": base.name, "path": str(folder)}, as_json)


@encoder_app.command("show")
def show_encoder(as_json: AsJson = False) -> None:
    """Show the database's encoder, and whether examples wait to be embedded by it."""
    with open_database() as connection:
        rows = [{**row, "state": _state(connection, row)} for row in rows_of(connection, QUERIES["show_encoder"])]
    emit(rows, title="Encoder", as_json=as_json, columns=("name", "source", "dimensions", "input_version", "state"))


def _state(connection: Connection, encoder: dict[str, Any]) -> str:
    if encoder["is_ready"]:
        return "ready"
    missing = row_of(connection, QUERIES["count_unembedded"], {"task": None})["unembedded"]
    return f"jobs wait: {missing} examples to embed"


@encoder_app.command("set")
def set_encoder(
    source: Source,
    *,
    revision: Revision = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask whether to leave out examples without text.")] = False,
    as_json: AsJson = False,
) -> None:
    """Set the database's encoder. If the encoder changes, all examples are embedded again, and jobs
    wait meanwhile. If the command is killed, run it again to continue. Run it on several machines to share the work.
    """
    from loracomp.model.encoder import load_encoder
    from loracomp.model.loading import resolve_device
    from loracomp.registry import encoder_change

    def confirm(left_out: Mapping[str, int]) -> None:
        counts = ", ".join(f"{task} {examples}" for task, examples in left_out.items())
        warn(
            f"{encoder.name} can't embed the following examples, because they have no text, so jobs will not "
            "retrieve them: "
            f"{counts}. `loracomp task import-catalogue` fills in their texts"
        )
        if not yes:
            typer.confirm("Change the encoder without them?", abort=True, err=True)

    settings = load_settings()
    encoder = load_encoder(source, revision=revision, device=resolve_device(settings.device))
    encoder_change.set_encoder(database_url(settings), encoder, confirm)
    show_encoder(as_json)


@encoder_app.command("index")
def index_embeddings(as_json: AsJson = False) -> None:
    """Rebuild the index of the examples' embeddings, for faster routing after many were added. Jobs wait meanwhile."""
    from loracomp.registry import embeddings

    with open_database() as connection, remarks.status("building the index"):
        embeddings.index_embeddings(connection)
    say_or_json("the index is built", {"indexed": True}, as_json)
