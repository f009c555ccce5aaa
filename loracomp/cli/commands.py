"""Registers all commands on the application."""

import typer

from loracomp.cli import database, demo, evaluation, jobs, operations, registry, training


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
    registry.library_app.command("train")(training.train_library)
    registry.register(app)
    app.add_typer(database.db_app, name="db")
