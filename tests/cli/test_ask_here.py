"""Commands that answer a job in their own process, if its worker raises an error or is told to stop."""

import os
import signal
from collections.abc import Callable

import pytest
from psycopg.types.json import Jsonb

from job_data import BASE, add_base_model, add_jobs, statuses
from loracomp.cli import jobs
from loracomp.config import Settings
from loracomp.database.connections import Connection, row_of
from loracomp.database.queries import QUERIES
from loracomp.engine.inflight import InFlight
from loracomp.errors import DeviceFailedError, LoracompError, SchemaMismatchError
from loracomp.worker import start
from loracomp.worker.worker import Worker
from made_up_engine import MadeUp


class Acting(MadeUp):
    """An engine whose steps do something else than to answer."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act

    def step(self) -> list[InFlight]:
        self._act()
        return []


@pytest.fixture
def job(connection: Connection, database: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("LORACOMP_DATABASE_URL", database)
    monkeypatch.setenv("LORACOMP_GRACE_S", "600")  # at its end the process would end, and with it the tests
    add_base_model(connection)
    return int(row_of(connection, QUERIES["insert_job"], {"job": Jsonb({"prompt": "Is it wet?"})})["id"])


def serve_with(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    def open_worker(url: str, _: Settings) -> Worker:
        return Worker(url, Acting(act), base_model=BASE, settings=Settings(poll_s=0.05), device="cpu")

    monkeypatch.setattr(start, "open_worker", open_worker)


@pytest.mark.parametrize("kind", [DeviceFailedError, SchemaMismatchError])
def test_an_error_of_the_worker_is_the_commands(
    connection: Connection, job: int, monkeypatch: pytest.MonkeyPatch, kind: type[LoracompError]
) -> None:
    def fail() -> None:
        raise kind("no more")

    serve_with(monkeypatch, fail)
    with pytest.raises(kind, match="no more"):
        jobs.see_to(connection, [job], patience=0)
    assert statuses(connection) == {job: "queued"}


def test_an_interrupted_command_says_which_jobs_still_wait(
    connection: Connection, job: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise DeviceFailedError("the worker ends")

    serve_with(monkeypatch, interrupt)
    (other,) = add_jobs(connection, "Is it hot?")
    with pytest.raises((KeyboardInterrupt, DeviceFailedError)):
        jobs.see_to(connection, [job, other], patience=0)
    said = capfd.readouterr().err
    assert all(f"job {each} still waits" in said for each in (job, other))
