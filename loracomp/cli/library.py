"""Commands about libraries."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loracomp.cli.common import AsJson, emit, open_database
from loracomp.config import load_settings

library_app = typer.Typer(no_args_is_help=True)


@library_app.command("load")
def load(
    folder: Annotated[Path | None, typer.Argument(help="Folder of the library. Defaults to the shipped one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load a library's tasks, adapters and embedded examples into the database. Running it again changes nothing."""
    from loracomp.registry.library import load_library

    with open_database() as connection:
        report = load_library(connection, folder, settings=load_settings())
    emit([asdict(row) for row in report], title="Library", as_json=as_json)
