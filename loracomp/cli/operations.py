"""Commands for operators: workers, ray, doctor, refresh."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from loracomp.cli.common import AsJson, console, emit, emit_json, open_database, remarks, run_query, shown
from loracomp.config import load_settings
from loracomp.database import embedded
from loracomp.database.queries import QUERIES
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.database.doctor import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def workers(as_json: AsJson = False) -> None:
    """List the workers and what each is doing. Workers without a report for a day are left out."""
    rows = run_query(QUERIES["worker_status"])
    columns = ("worker", "status", "base_model", "device", "running", "succeeded", "failed", "seen_s", "code_version")
    emit(rows, title="Workers", as_json=as_json, columns=columns)


def ray(
    workers: Annotated[int, typer.Option(help="Number of workers to run on the cluster; 0: none.", min=0)],
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs that Ray reserves for each worker.", min=0)] = 0,
    cpus_per_worker: Annotated[float, typer.Option(help="CPU cores that Ray reserves for each worker.", min=0)] = 1,
    address: Annotated[str, typer.Option(help="The Ray cluster: host:port, or auto for this machine's.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Run so many workers on a Ray cluster, and return: starts what is missing, drains what is too much.

    Workers get this process's LORACOMP_* variables. Ray starts them again where a node dies. Needs the extra `ray`.
    """
    settings = load_settings()
    if settings.database_url is None:
        raise UsageError("LORACOMP_DATABASE_URL is not set: name the database that workers on other nodes can reach")
    try:
        import ray as cluster

        from loracomp.worker import on_ray
    except ModuleNotFoundError as error:
        raise UsageError("Ray is not installed here: pip install 'loracomp[ray]'") from error
    try:
        cluster.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there; `ray start --head` starts one") from error
    done = on_ray.scale(
        workers,
        gpus_per_worker=gpus_per_worker,
        cpus_per_worker=cpus_per_worker,
        environment=_of_each_worker(settings.database_url),
        drain_s=settings.grace_s,
    )
    emit([{"worker": name, "done": what} for name, what in done.items()], title="Workers on Ray", as_json=as_json)


def _of_each_worker(database_url: str) -> dict[str, str]:
    """This process's LORACOMP_* variables, without what two workers of one node can't share: a name and a port."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("LORACOMP_")}
    ours.pop("LORACOMP_WORKER", None)
    if "LORACOMP_METRICS_PORT" in ours:
        ours["LORACOMP_METRICS_PORT"] = "0"
    return {**ours, "LORACOMP_DATABASE_URL": database_url}


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check server, schema, roles, registry and queue. Exits with 1 if a check fails."""
    from loracomp.database.doctor import examine

    settings = load_settings()
    findings = examine(embedded.database_url(settings), settings)
    if as_json:
        emit_json(findings)
    else:
        _show(findings)
    bad = {"fail", "warn"} if strict else {"fail"}
    if any(each["status"] in bad for each in findings):
        raise typer.Exit(1)


def _show(findings: "list[Finding]") -> None:
    if console.is_terminal:
        _print_table(findings)
    else:
        emit(findings, title="Doctor", as_json=False, columns=("status", "check_name", "detail"))
    counts = {status: sum(each["status"] == status for each in findings) for status in _COLOURS}
    remarks.print(", ".join(f"{number} {status}" for status, number in counts.items()))


def _print_table(findings: "list[Finding]") -> None:
    table = Table(title="Doctor", title_justify="left", header_style="bold")
    for column in ("status", "check", "detail"):
        table.add_column(column, overflow="fold")
    for each in findings:
        colour = _COLOURS[each["status"]]
        table.add_row(f"[{colour}]{each['status']}[/{colour}]", shown(each["check_name"]), shown(each["detail"]))
    console.print(table)


def refresh(
    older_than: Annotated[float, typer.Option(help="Refresh only reports older than this many minutes.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compute the reports of schema bi again for days whose jobs have changed. They can be read while this runs."""
    with open_database() as connection:
        arguments = {"older_than": timedelta(minutes=older_than)}
        rows = connection.execute(QUERIES["refresh_reports"], arguments).fetchall()
    emit(rows, title="Refreshed", as_json=as_json)
