"""Commands about the database: init, db start|stop|reset|status|url|psql|dump|restore."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from loracomp.cli.common import AsJson, remark, say_or_json
from loracomp.config import load_settings
from loracomp.database import embedded
from loracomp.database.connections import Connection, connect, translated_errors

db_app = typer.Typer(no_args_is_help=True)


def init(
    again: Annotated[
        bool, typer.Option("--again", help="Create functions, views and grants again, even if no file has changed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Install or upgrade the database: extension, roles, tables, functions, views, grants. Running it again is safe."""
    from loracomp.database import schema

    done = schema.initialize(embedded.database_url(load_settings()), again=again)
    say_or_json(
        "\n".join(done) or "nothing to do: the database already has this release's schema", {"done": done}, as_json
    )


def sql(
    since: Annotated[
        str | None, typer.Option("--from", help="Print only what upgrades the schema of this release, such as 1.0.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="The release whose schema the script makes. Only this program's own release is possible."),
    ] = None,
) -> None:
    """Print the statements that `init` runs, as a script for psql."""
    from loracomp.database.script import schema_script

    typer.echo(schema_script(since, to))


@db_app.command()
def start(as_json: AsJson = False) -> None:
    """Start the embedded server and print its URL. It runs until `loracomp db stop`."""
    url = embedded.start(embedded.data_folder(load_settings()))
    say_or_json(url, {"url": url}, as_json)


@db_app.command()
def stop(as_json: AsJson = False) -> None:
    """Stop the embedded server; its data is kept."""
    stopped = embedded.stop(embedded.data_folder(load_settings()))
    say_or_json("stopped" if stopped else "it was not running", {"stopped": stopped}, as_json)


@db_app.command()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the embedded database with all its data: jobs, answers, adapters. Asks for confirmation."""
    folder = embedded.data_folder(load_settings()).expanduser().resolve()
    if folder.exists() and not yes:
        typer.confirm(f"Delete the database in {folder} with everything in it?", abort=True, err=True)
    deleted = embedded.reset(folder)
    say_or_json(f"deleted {folder}" if deleted else "there was no database to delete", {"deleted": deleted}, as_json)


@db_app.command()
def status(as_json: AsJson = False) -> None:
    """Show whether the embedded server is running, and where its data is. Exits with 3 if the server is not running."""
    folder = embedded.data_folder(load_settings())
    running = embedded.is_running(folder)
    said = f"{'running' if running else 'not running'}: {folder}"
    say_or_json(said, {"running": running, "data": str(folder)}, as_json)
    if not running:
        raise typer.Exit(3)


@db_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(arguments: Annotated[list[str] | None, typer.Argument(help="Options of psql.")] = None) -> None:
    """Open psql on the database. It takes all options of psql, such as -c "SELECT ..." or -U ROLE."""
    environment = _for_psql(embedded.database_url(load_settings()))
    program = str(embedded.psql_path())
    os.execve(program, [program, *(arguments or [])], environment)  # noqa: S606  psql replaces this process


@db_app.command()
def url(as_json: AsJson = False) -> None:
    """Print the URL of the configured database, with its password if it has one. The embedded server is started."""
    address = embedded.database_url(load_settings())
    say_or_json(address, {"url": address}, as_json)


@db_app.command()
def dump(file: Annotated[Path, typer.Argument(help="File to write.")]) -> None:
    """Write the whole database to a file, for `db restore` or pg_restore. An earlier dump is replaced once the new one
    is complete."""
    address = embedded.database_url(load_settings())
    with translated_errors(), connect(address, vectors=False) as connection:
        program = _program("pg_dump", connection)
    if file.exists() and not file.is_file():  # such as /dev/stdout
        os.execve(program, [program, "--format=custom", f"--file={file}"], _for_psql(address))  # noqa: S606
    whole = file.resolve()
    part = whole.with_name(f"{whole.name}.part")
    part.unlink(missing_ok=True)  # a pg_dump that was left behind may still write it
    if whole.exists():
        part.touch()
        shutil.copymode(whole, part)
    dumped = subprocess.run(  # noqa: S603
        [program, "--format=custom", f"--file={part}"], env=_for_psql(address), check=False
    )
    if dumped.returncode:
        part.unlink(missing_ok=True)
        raise typer.Exit(1)
    part.replace(whole)


@db_app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="File that `db dump` or `pg_dump -Fc` has written.")],
    trust: Annotated[
        list[str] | None,
        typer.Option(help="A role whose functions may run with your rights during the restore. Can be repeated."),
    ] = None,
    use_list: Annotated[
        Path | None, typer.Option(help="Restore only what this file lists, as pg_restore's option of this name does.")
    ] = None,
) -> None:
    """Restore a dump into the configured database, which must be empty. Either all is restored, or nothing.

    Only a superuser can restore. Constraints and other expressions of users' tables run during a restore with the
    superuser's rights, so a dump is refused if it contains code for them of a role that is neither a superuser nor
    trusted.

    Roles belong to the server and are not in the dump. loracomp's own roles are created if they are missing; create all
    other roles, such as your logins, before you restore.
    """
    from loracomp.database.guard import guarded
    from loracomp.database.schema import make_roles

    address = embedded.database_url(load_settings())
    with translated_errors(), connect(address, vectors=False) as connection:
        make_roles(connection)
        program, target = _program("pg_restore", connection), make_conninfo(dbname=connection.info.dbname)
        arguments = ["--single-transaction", f"--dbname={target}", *([f"--use-list={use_list}"] if use_list else [])]
        with guarded(connection, trust or []):
            done = subprocess.run([program, *arguments, str(file)], env=_for_psql(address), check=False)  # noqa: S603
    if done.returncode:
        remark(
            "Nothing was restored. If a role does not exist, create it with CREATE ROLE, and restore again. If "
            "something exists already, restore into an empty database."
        )
    raise typer.Exit(done.returncode)


def _program(name: str, connection: Connection) -> str:
    return str(embedded.program_path(name, connection.info.server_version // 10000))


def _for_psql(url: str) -> dict[str, str]:
    """Return the environment with the URL as libpq's variables (PGHOST, ...).

    Variables are used, and not a URL among the arguments, so that psql's own options override them and other users
    can't see the password.
    """
    variables = {option.keyword.decode(): option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar}
    named = {variables[key]: str(value) for key, value in conninfo_to_dict(url).items() if key in variables}
    # PGSERVICE would override the other variables, so it is removed unless the URL names a service.
    return {key: value for key, value in os.environ.items() if key != "PGSERVICE"} | named
