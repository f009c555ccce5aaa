"""Commands about the database: init, db start|stop|reset|status|psql."""

import os
from typing import Annotated

import typer
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from loracomp.cli.common import AsJson, console, emit_json
from loracomp.config import load_settings
from loracomp.database import embedded, schema

db_app = typer.Typer(help="The embedded Postgres.", no_args_is_help=True)


def init(
    again: Annotated[bool, typer.Option("--again", help="Make functions, views and grants anew in any case.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the database to this release: extension, roles, tables, functions, views, grants. Safe to run again."""
    done = schema.initialize(embedded.database_url(load_settings()), again=again)
    if as_json:
        emit_json({"done": done})
    else:
        console.print("\n".join(done) or "nothing to do: the database is at this release")


@db_app.command()
def start(as_json: AsJson = False) -> None:
    """Start it; it goes on until `loracomp db stop`. Prints its URL."""
    url = embedded.start(embedded.data_folder(load_settings()))
    if as_json:
        emit_json({"url": url})
    else:
        console.print(url, soft_wrap=True)


@db_app.command()
def stop(as_json: AsJson = False) -> None:
    """Stop it; its data stays."""
    stopped = embedded.stop(embedded.data_folder(load_settings()))
    if as_json:
        emit_json({"stopped": stopped})
    else:
        console.print("stopped" if stopped else "it was not running")


@db_app.command()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the embedded database with everything in it: jobs, answers, adapters. Asks first."""
    folder = embedded.data_folder(load_settings()).expanduser().resolve()
    if folder.exists() and not yes:
        typer.confirm(f"Delete the database in {folder} with everything in it?", abort=True, err=True)
    deleted = embedded.reset(folder)
    if as_json:
        emit_json({"deleted": deleted})
    else:
        console.print(f"deleted {folder}" if deleted else "there was none", soft_wrap=True)


@db_app.command()
def status(as_json: AsJson = False) -> None:
    """Whether it runs, and where its data is. Exits with 3 where it does not run."""
    folder = embedded.data_folder(load_settings())
    running = embedded.is_running(folder)
    if as_json:
        emit_json({"running": running, "data": str(folder)})
    else:
        console.print(f"{'running' if running else 'not running'}: {folder}", soft_wrap=True)
    if not running:
        raise typer.Exit(3)


@db_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(arguments: Annotated[list[str] | None, typer.Argument(help="Passed on to psql.")] = None) -> None:
    """Open psql on the database, or run `loracomp db psql -c "..."`. Its own options hold, such as -U ROLE."""
    environment = _for_psql(embedded.database_url(load_settings()))
    program = str(embedded.psql_path())
    os.execve(program, [program, *(arguments or [])], environment)  # noqa: S606  psql takes this process's place


def _for_psql(url: str) -> dict[str, str]:
    """The URL as libpq's variables: psql's options go before them, and others see no password among its arguments."""
    variables = {option.keyword.decode(): option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar}
    named = {variables[key]: str(value) for key, value in conninfo_to_dict(url).items() if key in variables}
    # Like an option, a service goes before the variables; one that the URL does not name must not.
    return {key: value for key, value in os.environ.items() if key != "PGSERVICE"} | named
