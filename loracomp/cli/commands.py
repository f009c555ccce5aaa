"""Every command, registered on the application."""

import typer

from loracomp.cli import database


def register(app: typer.Typer) -> None:
    """Add the commands in the order in which a newcomer meets them."""
    app.command()(database.init)
    app.command()(database.doctor)
    app.add_typer(database.db_app, name="db")
