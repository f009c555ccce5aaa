"""Commands about the database: init, db start|stop|status|psql, doctor."""

import os
from typing import Annotated, Any

import typer

from loracomp import db, embedded, schema
from loracomp.cli.common import AsJson, console, emit, emit_json
from loracomp.config import load_settings
from loracomp.errors import SchemaMismatchError
from loracomp.queries import QUERIES

db_app = typer.Typer(help="The embedded Postgres.", no_args_is_help=True)


def init(as_json: AsJson = False) -> None:
    """Bring the database to this release: extension, roles, tables, functions, views, grants. Safe to run again."""
    done = schema.initialize(embedded.database_url(load_settings()))
    if as_json:
        emit_json({"done": done})
    else:
        console.print("\n".join(done) or "nothing to do: the database is at this release")


def doctor(as_json: AsJson = False) -> None:
    """Check server, schema, registry and queue. Exits with 1 where something fails."""
    checks = _schema_checks(embedded.database_url(load_settings()))
    emit(checks, title="doctor", as_json=as_json)
    if any(check["status"] == "fail" for check in checks):
        raise typer.Exit(1)


def _schema_checks(url: str) -> list[dict[str, Any]]:
    try:
        schema.check_revision(url)
    except SchemaMismatchError as error:
        return [{"check": "schema", "status": "fail", "detail": str(error)}]
    changed = schema.changed_files(url)
    drift = {
        "check": "sql/ objects",
        "status": "warn" if changed else "ok",
        "detail": f"differ from this release: {', '.join(changed)}; run `loracomp init`" if changed else "as released",
    }
    with db.translated_errors(), db.connect(url) as opened:
        return [drift, *opened.execute(QUERIES["check_health"]).fetchall()]


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
    """Open psql on the database, or run `loracomp db psql -c "..."`."""
    url = embedded.database_url(load_settings())
    program = str(embedded.psql_path())
    os.execv(program, [program, url, *(arguments or [])])  # noqa: S606  psql takes this process's place
