"""Commands for operators: workers, doctor, refresh."""

from collections import Counter
from datetime import timedelta
from typing import Annotated

import typer

from loracomp.cli.common import AsJson, emit, open_database, remarks, run_query
from loracomp.config import load_settings
from loracomp.database import embedded
from loracomp.database.queries import QUERIES


def workers(as_json: AsJson = False) -> None:
    """List the running workers and what each is doing, and count those that stopped within the last day."""
    rows = run_query(QUERIES["worker_status"])
    listed = [row for row in rows if as_json or row["status"] != "stopped"]
    once = ("device", "base_model", "code_version")
    columns = ("worker", "status", "running", "failed", "seen_s", *once)
    emit(listed, title="Workers", as_json=as_json, columns=columns, once=once)
    if stopped := len(rows) - len(listed):
        remarks.print(f"{stopped} stopped")


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Also exit with 1 if there are warnings.")] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Also print the checks that passed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check server, schema, roles, registry and queue, and print problems. Exits with 1 if a check fails."""
    from loracomp.database.doctor import examine

    findings = examine(embedded.database_url(load_settings()))
    counts = Counter(each["status"] for each in findings)
    if listed := [each for each in findings if as_json or show_all or each["status"] != "ok"]:
        emit(listed, title="Doctor", as_json=as_json, columns=("status", "check_name", "detail"))
    if not as_json:
        remarks.print(", ".join(f"{counts[status]} {status}" for status in ("ok", "warn", "fail") if counts[status]))
    if counts["fail"] or (strict and counts["warn"]):
        raise typer.Exit(1)


def refresh(
    older_than: Annotated[
        float, typer.Option(min=0, max=50_000_000, help="Only refresh reports that are older than this many minutes.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Recompute the reports of schema bi for days whose jobs have changed. They can be read while this runs."""
    with open_database() as connection:
        arguments = {"older_than": timedelta(minutes=older_than)}
        rows = connection.execute(QUERIES["refresh_reports"], arguments).fetchall()
    emit(rows, title="Refreshed", as_json=as_json)
