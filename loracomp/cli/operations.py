"""Commands for operators: workers, ray, doctor, refresh."""

import os
from collections import Counter
from datetime import timedelta
from typing import Annotated

import typer

from loracomp.cli.common import AsJson, emit, open_database, remarks, run_query
from loracomp.config import load_settings
from loracomp.database import embedded
from loracomp.database.queries import QUERIES
from loracomp.errors import UsageError


def workers(as_json: AsJson = False) -> None:
    """List the workers and what each is doing, and count those that stopped within the last day."""
    rows = run_query(QUERIES["worker_status"])
    listed = [row for row in rows if as_json or row["status"] != "stopped"]
    once = ("device", "base_model", "code_version")
    columns = ("worker", "status", "running", "failed", "seen_s", *once)
    emit(listed, title="Workers", as_json=as_json, columns=columns, once=once)
    if stopped := len(rows) - len(listed):
        remarks.print(f"{stopped} stopped")


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
    show_all: Annotated[bool, typer.Option("--all", help="Print the checks that are ok too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check server, schema, roles, registry and queue; print what is not well. Exits with 1 if a check fails."""
    from loracomp.database.doctor import examine

    settings = load_settings()
    findings = examine(embedded.database_url(settings), settings)
    counts = Counter(each["status"] for each in findings)
    if listed := [each for each in findings if as_json or show_all or each["status"] != "ok"]:
        emit(listed, title="Doctor", as_json=as_json, columns=("status", "check_name", "detail"))
    if not as_json:
        remarks.print(", ".join(f"{counts[status]} {status}" for status in ("ok", "warn", "fail") if counts[status]))
    if counts["fail"] or (strict and counts["warn"]):
        raise typer.Exit(1)


def refresh(
    older_than: Annotated[float, typer.Option(help="Refresh only reports older than this many minutes.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compute the reports of schema bi again for days whose jobs have changed. They can be read while this runs."""
    with open_database() as connection:
        arguments = {"older_than": timedelta(minutes=older_than)}
        rows = connection.execute(QUERIES["refresh_reports"], arguments).fetchall()
    emit(rows, title="Refreshed", as_json=as_json)
