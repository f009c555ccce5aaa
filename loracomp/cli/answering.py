"""Waits until jobs are answered, with a progress bar; if no worker is running, starts one in this process."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread

import psycopg

from loracomp.cli import common
from loracomp.config import Settings
from loracomp.database.connections import Connection, connect, row_of, rows_of
from loracomp.database.embedded import database_url
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError
from loracomp.model.cpu import collection_paused


@dataclass(frozen=True, slots=True)
class Waiting:
    """Numbers of jobs that are not answered yet."""

    base_model: str
    queued: int = 0
    running: int = 0

    @property
    def left(self) -> int:
        """Number of jobs that are queued or running."""
        return self.queued + self.running


Look = Callable[[Connection], Waiting | None]
"""Counts the jobs that are waiting; None if there are none."""


def see_to_answers(connection: Connection, settings: Settings, look: Look, total: int, doing: str) -> int:
    """Wait until workers have answered the jobs, or answer them in this process.

    `look` counts the jobs that still wait or run. A login that may not run a worker, such as an administrator's, always
    waits for workers. `total` is the length of the progress bar and `doing` its title. Prints what the command waits
    for, whenever that changes. Returns how many jobs are left.
    """
    waiting = look(connection)
    may_answer = may_work(connection)
    said = ""
    with _progress(settings, look, total, doing):
        while waiting and waiting.left:
            workers = _workers(connection, waiting.base_model)
            if said != (said := _awaited(waiting.base_model, workers, may_answer)):
                common.remark(f"{waiting.left} jobs wait: {said}")
            if workers or not may_answer:
                time.sleep(1)
            else:
                _work_here(settings.model_copy(update={"base_model": waiting.base_model}))
                waiting = look(connection)
                if waiting and waiting.queued:  # our worker leaves queued jobs only if it was told to stop
                    break
            waiting = look(connection)
    return waiting.left if waiting else 0


def _workers(connection: Connection, base_model: str) -> int:
    """How many workers of this base model are alive. A worker that was killed counts until its lease is over."""
    reports = rows_of(connection, QUERIES["worker_status"])
    return sum(row["base_model"] == base_model and row["status"] in ("idle", "busy") for row in reports)


def _awaited(base_model: str, workers: int, may_answer: bool) -> str:
    """Return a sentence on who will answer the jobs, or on what to do if nobody can."""
    if workers:
        return f"the workers of {base_model} ({workers} running) take them when no everyday job is due"
    if may_answer:
        return f"no worker of {base_model} is running, so this process answers them"
    return (
        f"no worker of {base_model} is running, and this login may not run one: start `loracomp worker` with a login "
        "that may (a member of loracomp_worker). Ctrl-C leaves the jobs in the queue"
    )


def may_work(connection: Connection) -> bool:
    """Return whether the login may run a worker: only members of loracomp_worker and the owner may."""
    return bool(row_of(connection, QUERIES["may_work"])["may"])


def _work_here(settings: Settings) -> None:
    with collection_paused():
        from loracomp.worker.process import serve
        from loracomp.worker.start import open_worker

        worker = open_worker(database_url(settings), settings, drain=True)
    serve(worker, settings.grace_s)


@contextmanager
def _progress(settings: Settings, look: Look, total: int, doing: str) -> Iterator[None]:
    """Show a progress bar that counts finished jobs on its own connection, whichever worker answers them."""
    from loracomp.registry.embeddings import progress_bar

    over = Event()
    with progress_bar(common.remarks) as progress:
        line = progress.add_task(doing, total=total)

        def show() -> None:
            # Ignore an unreachable database here: the worker reports it.
            with suppress(psycopg.Error, LoracompError), connect(database_url(settings), vectors=False) as own:
                waiting = look(own)
                progress.update(line, completed=total - (waiting.left if waiting else 0))

        def follow() -> None:
            took = 0.0
            while not over.wait(max(1, 20 * took)):  # counting many jobs is slow: spend at most 5 % of the time on it
                start = time.monotonic()
                show()
                took = time.monotonic() - start

        thread = Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            show()
