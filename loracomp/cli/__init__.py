"""The command line. An error prints one sentence on stderr and sets the exit code (`loracomp.errors`)."""

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from loracomp import __version__
from loracomp.errors import LoracompError
from loracomp.model.cpu import wait_briefly

app = typer.Typer(
    name="loracomp",
    help="Insert a row, get a prediction from the right mix of LoRA adapters, with the trace that explains it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_LONGEST = 4000
"""Number of characters of a longer error that are shown: its beginning and its end."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loracomp {__version__}")
        raise typer.Exit


_Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")]


@app.callback()
def _options(_: _Version = False) -> None:
    from loracomp.config import unknown_variables

    for sentence in unknown_variables():
        _say("warning: ", "", sentence)


def main() -> None:
    """Run the command line, and end the process with the exit code of the error, or 0."""
    _open_streams()
    wait_briefly()
    try:
        try:
            from loracomp.cli import commands

            commands.register(app, wanted=next((word for word in sys.argv[1:] if not word.startswith("-")), ""))
            app()
        finally:
            _write_the_rest()
    except KeyboardInterrupt:  # while modules are imported; a command's own is caught by typer
        sys.exit(130)
    except LoracompError as error:
        _end(str(error), error.exit_code)
    except UnicodeEncodeError as error:  # an argument that the database can't store
        _end(f"{error.object[:60]!a} is not valid UTF-8: send it in that encoding", 2)
    except BrokenPipeError:  # the program that read stdout has ended, such as head
        sys.exit(1)
    except OSError as error:  # a file or folder that can't be read or written; the message names it
        _end(str(error), 1)


def _open_streams() -> None:
    """Let every text be written to stdout and stderr, whatever their encoding is and even if they are closed. A closed
    stdin is empty."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 - until the process ends
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _write_the_rest() -> None:
    """Write what is still buffered for stdout. Raises OSError if that is impossible, for example on a full disk."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python tries again when the process ends, which would print a stack trace and exit with 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _end(sentence: str, exit_code: int) -> None:
    if len(sentence) > _LONGEST:  # an argument of any length may stand in it
        sentence = f"{sentence[: _LONGEST // 2]} ... {sentence[-_LONGEST // 2 :]}"
    _say("error: ", "red", sentence)
    sys.exit(exit_code)


def _say(kind: str, style: str, sentence: str) -> None:
    from rich.text import Text

    from loracomp.cli.common import harmless, remarks

    remarks.print(Text.assemble((kind, style), harmless(sentence)), soft_wrap=True)
