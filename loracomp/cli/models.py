"""Commands about base models and the encoder."""

from dataclasses import replace
from typing import Annotated

import typer

from loracomp.cli.common import AsJson, emit, emit_json, load_base, open_database, remarks, run_query
from loracomp.config import load_settings
from loracomp.database.embedded import database_url
from loracomp.database.queries import QUERIES

model_app = typer.Typer(help="Base models, for which adapters are trained.", no_args_is_help=True)
encoder_app = typer.Typer(help="The encoder that embeds examples and jobs.", no_args_is_help=True)

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
    name: Annotated[str | None, typer.Option(help="Its name for jobs. Defaults to the source's last part.")] = None,
    revision: Revision = None,
    default: Annotated[bool, typer.Option("--default", help="Jobs that name no base model use this one.")] = False,
    unloaded: Annotated[
        bool, typer.Option("--unloaded", help="Don't load and test it, as this machine has too little memory.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Load a base model, try it out, and register it by its name and the sha256 of its weights."""
    from loracomp.model.loading import describe_base_model
    from loracomp.model.trial import try_out
    from loracomp.registry import base_models

    settings = load_settings()
    with open_database() as connection:
        if unloaded:
            model = describe_base_model(source, revision=revision, cache_dir=settings.home / "models")
        else:
            with remarks.status("loading the model, to test it"):
                model = load_base(source, revision=revision, device_map=settings.device_map)
                try_out(model)
        base_models.register_base_model(connection, replace(model, name=name or model.name), make_default=default)
    list_models(as_json)


@model_app.command("default")
def set_default_model(name: RegisteredName, as_json: AsJson = False) -> None:
    """Make a registered base model the default, for jobs that name no base model."""
    run_query(QUERIES["set_default_base_model"], {"name": name})
    list_models(as_json)


@model_app.command("remove")
def remove_model(
    name: RegisteredName,
    force: Annotated[bool, typer.Option("--force", help="Delete its adapters too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a base model. Refused if a job names it."""
    run_query(QUERIES["remove_base_model"], {"name": name, "force": force})
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
    rows = run_query(QUERIES["show_encoder"])
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
