"""The command line. Errors are a sentence on stderr and an exit code (`loracomp.errors`), never a stack trace."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from loracomp.config import unknown_variables
from loracomp.errors import LoracompError
from loracomp.model.cpu import wait_briefly

app = typer.Typer(
    name="loracomp",
    help="Insert a row, get a prediction from the right mix of LoRA adapters, with the trace that explains it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loracomp {version('loracomp')}")
        raise typer.Exit


_Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")]


@app.callback()
def _options(_: _Version = False) -> None:
    for sentence in unknown_variables():
        Console(stderr=True).print(Text(f"warning: {sentence}"), soft_wrap=True)


def main() -> None:
    """Run the command line; the process's exit code is the error's."""
    wait_briefly()
    from loracomp.cli import commands

    commands.register(app)
    try:
        app()
    except LoracompError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        sys.exit(error.exit_code)
