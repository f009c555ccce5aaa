"""Registers all commands on the application."""

import typer

from loracomp.cli import adapters, database, demo, evaluation, jobs, library, models, operations, tasks, training


def register(app: typer.Typer) -> None:
    """Add all commands, in the order in which a new user needs them; `--help` shows that order."""
    app.command()(database.init)
    app.command()(demo.demo)
    app.command()(jobs.ask)
    app.command()(jobs.explain)
    app.command()(jobs.replay)
    app.command()(jobs.worker)
    app.command()(operations.workers)
    app.command()(operations.ray)
    app.command()(operations.doctor)
    app.command()(operations.refresh)
    app.command()(training.train)
    app.command()(evaluation.evaluate)
    library.library_app.command("train")(training.train_library)
    app.add_typer(models.model_app, name="model")
    app.add_typer(models.encoder_app, name="encoder")
    app.add_typer(tasks.task_app, name="task")
    app.add_typer(adapters.adapter_app, name="adapter")
    app.add_typer(library.library_app, name="library")
    app.add_typer(tasks.policy_app, name="policy")
    app.add_typer(database.db_app, name="db")
