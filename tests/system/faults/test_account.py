"""Tests that the account overlooks no lost or doubled job."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from arena import Arena, own_server
from faults import SkippedError
from job_data import claim, ended, record_predictions
from routing_data import BASE_MODEL

TRACE = {
    "example_ids": [1],
    "example_tasks": ["t"],
    "similarities": [1.0],
    "adapter_ids": [1],
    "adapter_weights": [1.0],
}


@pytest.fixture(scope="module", name="arena")
def arena_of_a_module() -> Iterator[Arena]:
    with own_server() as server, server.arena(3) as arena:
        yield arena


@pytest.fixture(name="answered")
def answered_jobs(arena: Arena) -> None:
    """Add three jobs that are as they should be."""
    arena.one("WITH gone AS (DELETE FROM loracomp.job RETURNING 1) SELECT count(*) FROM gone")
    arena.accepted = arena.may_fail = 0
    arena.insert(3)
    with arena.connect() as connection:
        jobs = claim(connection, base_model=BASE_MODEL)
        rows = [ended(job.id, output="ASK", composed_tasks=["t"], adapter_sha256=["0" * 64], **TRACE) for job in jobs]
        assert len(record_predictions(connection, jobs, rows)) == 3
    assert (arena.account().lost, arena.account().doubled) == (0, 0)


@pytest.mark.usefixtures("answered")
def test_a_job_that_vanished_is_lost(arena: Arena) -> None:
    arena.one("DELETE FROM loracomp.job WHERE id = (SELECT max(id) FROM loracomp.job) RETURNING 1")
    account = arena.account()
    assert (account.jobs, account.lost, account.doubled) == (3, 1, 0)


@pytest.mark.usefixtures("answered")
def test_a_job_that_fails_is_lost_unless_the_fault_means_it_to(arena: Arena) -> None:
    arena.insert(1)
    arena.one("UPDATE loracomp.job SET status = 'failed', finished_at = now() WHERE status = 'queued' RETURNING 1")
    assert arena.account().lost == 1
    arena.may_fail = 1
    assert arena.account().lost == 0


@pytest.mark.usefixtures("answered")
def test_a_job_that_nobody_inserted_is_doubled(arena: Arena) -> None:
    arena.accepted -= 1
    assert (arena.account().lost, arena.account().doubled) == (0, 1)


def skips(*_: object) -> str:
    raise SkippedError("there is no such tool")


def test_a_fault_that_could_not_be_tried_counts_as_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = spec_from_file_location("faults_command", Path(__file__).with_name("__main__.py"))
    assert spec and spec.loader
    command = module_from_spec(spec)
    spec.loader.exec_module(command)
    server = SimpleNamespace(model="none", arena=lambda _: nullcontext())
    monkeypatch.setattr(command, "own_server", lambda _: nullcontext(server))
    monkeypatch.setitem(command.FAULTS, "clock_off", skips)
    options: dict[str, Any] = {
        "only": ["clock_off"],
        "jobs": 40,
        "runs": 1,
        "model": "none",
        "keep": tmp_path / "kept",
        "as_json": True,
    }
    with pytest.raises(typer.Exit):
        command.main(**options, allow_skipped=False)
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["runs"], row["note"]) == (0, "skipped: there is no such tool")
    assert not options["keep"].exists()
    command.main(**options, allow_skipped=True)
