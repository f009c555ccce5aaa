"""Commands about jobs: ask, explain, replay, worker."""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime, timedelta
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.answering import may_work
from loracomp.cli.brief import brief
from loracomp.cli.common import (
    BIGINT,
    INTEGER,
    AsJson,
    MaxNewTokens,
    emit_json,
    loading,
    open_database,
    print_page,
    remark,
    remarks,
    say,
    storable_json,
)
from loracomp.config import load_settings
from loracomp.database.connections import Connection, row_of
from loracomp.database.embedded import database_url
from loracomp.database.queries import QUERIES
from loracomp.database.revision import check_worker
from loracomp.errors import JobError, LoracompError, NotFoundError, UsageError

if TYPE_CHECKING:  # at run time this import would load torch
    from loracomp.replay import Replay

ENDED = ("succeeded", "failed", "cancelled")


def ask(
    prompt: Annotated[str, typer.Argument(help="Text for the model to answer.")],
    *,
    choice: Annotated[
        list[str] | None,
        typer.Option(help="A possible answer. Repeat the option for each; without it, text is generated."),
    ] = None,
    describe: Annotated[
        list[str] | None,
        typer.Option(help="What a choice means, in a few words. Repeat it for each choice, in the same order."),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text at which generation stops.")] = None,
    temperature: Annotated[
        float, typer.Option(help="Temperature for generated text. 0 always takes the most likely token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the smallest set of tokens whose probability reaches this.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed for sampled text. Defaults to the job's number.", min=0, max=BIGINT)
    ] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option(help="Whether to use the base model's chat template. Defaults to the policy's setting."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of the chat template.")] = None,
    policy: Annotated[str, typer.Option(help="Name of the policy (settings of routing and merging).")] = "default",
    exclude_task: Annotated[
        list[str] | None, typer.Option(help="A task whose adapter must not be used. May be repeated.")
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds to wait for a worker. Then this process answers, if the login may run a worker.", min=0
        ),
    ] = 1.0,
    trace: Annotated[
        bool, typer.Option("--trace", help="Print the full explanation, as `loracomp explain` does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Insert a job, wait for its answer, and print it with its confidence and a short explanation."""
    job = storable_json(
        {
            "prompt": prompt,
            "choices": choice,
            "descriptions": describe,
            "max_new_tokens": max_new_tokens,
            "stop": stop,
            "temperature": str(temperature),  # JSON has no nan
            "top_p": str(top_p),
            "seed": seed,
            "chat_template": chat_template,
            "system_text": system,
            "policy": policy,
            "exclude_tasks": exclude_task,
        }
    )
    with open_database() as connection:
        number = row_of(connection, QUERIES["insert_job"], {"job": job})["id"]
        see_to(connection, [number], patience)
        row = _job(connection, number)
        if trace or as_json or row["status"] != "succeeded":
            _show(connection, row, as_json)
        else:
            _show_briefly(connection, number)
    if row["status"] != "succeeded":
        raise JobError(f"job {number} {row['status']}: {row['error']}", code=str(row["error_code"]))


def see_to(connection: Connection, jobs: Sequence[int], patience: float) -> None:
    """Wait until the jobs have ended. If no worker takes one within `patience` seconds, this process answers it.

    If this process ends before that, print which jobs are still queued, so that the user does not submit them again.
    """
    left = list(jobs)
    try:
        while left:  # the last job first, because the others are usually answered before it
            if not _wait(connection, left[-1], patience):
                _answer_or_wait(connection, left[-1])
            left.pop()
    except (LoracompError, KeyboardInterrupt):
        for job in left:
            remarks.print(f"job {job} still waits for a worker; `loracomp explain {job}` will show its answer")
        raise


def _job(connection: Connection, job: int) -> dict[str, Any]:
    row = connection.execute(QUERIES["job_trace"], {"id": job}).fetchone()
    if row is None:
        raise NotFoundError(f"job {job} does not exist, or is not yours")
    return row


def _wait(connection: Connection, job: int, patience: float | None) -> bool:
    """Wait until the job has ended. Returns False if no worker has claimed it within `patience` seconds."""
    start = time.monotonic()
    while (status := _look(connection, job)) not in ENDED:
        if status == "queued" and patience is not None and time.monotonic() - start > patience:
            return False
    return True


def _look(connection: Connection, job: int) -> str:
    """Wait until the job has ended, for at most half a second, and return its status."""
    values = {"id": job, "timeout": timedelta(seconds=0.5)}
    return str(row_of(connection, QUERIES["wait_for_job"], values)["status"])


def _answer_or_wait(connection: Connection, job: int) -> None:
    """Answer the job in this process if the login may run a worker (submitters may not); otherwise wait."""
    if may_work(connection):
        _answer_here(connection, job)
        return
    remarks.print(
        f"job {job} is waiting for a worker (`loracomp explain {job}` says more). Ctrl-C leaves it in the queue"
    )
    _wait(connection, job, patience=None)


def _answer_here(connection: Connection, job: int) -> None:
    """Run a worker until this job has ended; the worker also answers other jobs that it claims.

    Raises what the worker raised, and KeyboardInterrupt if it was told to stop before the job had ended.
    """
    with loading(f"no worker took job {job}: loading the models to answer it here"):
        from loracomp.worker.process import serve
        from loracomp.worker.start import open_worker

        settings = load_settings()
        worker = open_worker(database_url(settings), settings)
    served = Event()

    def stop_when_ended() -> bool:
        try:
            while not (ended := _look(connection, job) in ENDED) and not served.is_set():
                pass
            return ended
        finally:
            worker.stop()

    with remarks.status(f"answering job {job}"), ThreadPoolExecutor(1) as thread:
        watching = thread.submit(stop_when_ended)
        try:
            serve(worker, settings.grace_s)
        finally:
            served.set()
    if not watching.result():
        raise KeyboardInterrupt


def _show(connection: Connection, row: dict[str, Any], as_json: bool) -> None:
    """Print a job's trace, as JSON or in words."""
    if as_json:
        emit_json(row)
    else:
        say(row_of(connection, QUERIES["explain_job"], {"id": row["job_id"]})["explanation"])


def _show_briefly(connection: Connection, job: int) -> None:
    for line in brief(row_of(connection, QUERIES["job_results"], {"ids": [job]})):
        say(line)
    remark(f"More: loracomp explain {job}")


def explain(
    job: Annotated[int, typer.Argument(help="Number of the job.", min=1, max=BIGINT)],
    *,
    as_html: Annotated[bool, typer.Option("--html", help="Print an HTML page with a picture of the job.")] = False,
    as_svg: Annotated[bool, typer.Option("--svg", help="Print only the picture.")] = False,
    as_json: AsJson = False,
) -> None:
    """Explain how a job was answered: examples, tasks, weights, adapters, scores, timings."""
    with open_database() as connection:
        if as_html or as_svg:
            from loracomp.web.picture import read_job
            from loracomp.web.render import render, self_contained

            shown = read_job(connection, job)
            print_page(self_contained("job.html", **shown) if as_html else render("job.svg", **shown))
        else:
            _show(connection, _job(connection, job), as_json)


def local_time(given: datetime | None) -> datetime | None:
    """The given time in the time zone of this computer, which a date on the command line is meant in."""
    try:
        return given and given.astimezone()
    except (OverflowError, ValueError):
        raise typer.BadParameter(f"{given} is too far from now") from None


def replay(
    job: Annotated[int | None, typer.Argument(help="Number of the job.", min=1, max=BIGINT)] = None,
    *,
    all_since: Annotated[
        datetime | None,
        typer.Option(
            help="Replay a random sample of the jobs answered since this time, in this computer's time zone.",
            callback=local_time,
        ),
    ] = None,
    sample: Annotated[int, typer.Option(help="Size of the random sample for --all-since.", min=1, max=INTEGER)] = 20,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference in nats at which scores count as equal. Defaults to 0.05, or 0.25 if either run "
            "used 16 bits.",
            min=0,
        ),
    ] = None,
    merged: Annotated[
        bool,
        typer.Option(
            "--merged",
            help="Merge each mix into the model's weights, as PEFT does, and compare it with the exact weighted sum.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Answer jobs again with their stored compositions, and compare. Exits with 1 unless all answers are equal."""
    if (job is None) == (all_since is None):
        raise UsageError("name a job, or --all-since DATE")
    with open_database() as connection:
        traces = [_job(connection, job)] if job is not None else _sample(connection, all_since, sample)
        with loading("loading the models"):
            from loracomp.replay import replay as run_again
            from loracomp.worker.start import load_engine

            engine = load_engine(load_settings(), connection)
        results = [run_again(engine, connection, trace, tolerance, by_merging=merged) for trace in traces]
    if as_json:
        rows = [asdict(result) for result in results]
        emit_json(rows if job is None else rows[0])
    else:
        _show_replays(results)
    if any(result.outcome != "equal" for result in results):
        raise typer.Exit(1)


def _sample(connection: Connection, since: datetime | None, size: int) -> list[dict[str, Any]]:
    traces = connection.execute(QUERIES["sample_traces"], {"since": since, "sample": size}).fetchall()
    if not traces:
        raise NotFoundError(f"no job has been answered since {since}: give an earlier time")
    return traces


def _show_replays(results: "list[Replay]") -> None:
    for result in results:
        if result.outcome != "equal" or len(results) == 1:
            say(f"job {result.job}: {result.outcome}: {result.detail}")
    if len(results) > 1:
        counts = Counter(result.outcome for result in results)
        told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("equal", "different", "impossible"))
        say(f"{len(results)} jobs: {told}")


def worker(
    drain: Annotated[
        bool, typer.Option("--drain", help="Stop when no job is due and no row waits for an answer.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Maximum number of jobs to claim at once.", min=1, max=1024)
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port for /metrics and /ready. 0 takes any free port.", min=0, max=65535)
    ] = None,
) -> None:
    """Claim and answer jobs until SIGTERM. LORACOMP_* environment variables hold the settings."""
    given = {"batch_size": batch_size, "metrics_port": metrics_port}
    settings = load_settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    url = database_url(settings)
    check_worker(url)
    with ExitStack() as stack:
        with loading("loading the base model and the encoder"):
            from loracomp.worker import logfmt
            from loracomp.worker.endpoint import Endpoint
            from loracomp.worker.process import serve
            from loracomp.worker.start import open_worker

            logfmt.configure(settings.log_format, settings.log_level)
            endpoint = None
            if settings.metrics_port is not None:
                endpoint = stack.enter_context(Endpoint(settings.metrics_host, settings.metrics_port))
            opened = open_worker(url, settings, drain=drain, sample=endpoint.sample if endpoint else None)
        if endpoint:
            endpoint.problems = opened.problems
        raise typer.Exit(serve(opened, settings.grace_s))
