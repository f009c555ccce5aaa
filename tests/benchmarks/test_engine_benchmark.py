"""`make engine`: turns, ratios, figures as tables; and once, tiny, the whole of it."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from benchmarks.engine import __main__ as command
from benchmarks.engine.__main__ import parse_arguments
from benchmarks.engine.paper import GOALS
from benchmarks.engine.report import ORDER, cells, engine_tables, keep, read_results
from benchmarks.engine.timing import compare, over, take_turns
from benchmarks.engine.workbench import own_database
from conftest import drop_database
from demo_fixtures import ROOT
from job_data import add_base_model, add_jobs, claim, statuses
from loracomp.database import connections as db


def test_runs_take_turns_and_the_first_does_not_count() -> None:
    order = []
    runs = {name: lambda turn, name=name: order.append((turn, name)) for name in "ab"}
    seconds = take_turns(runs, 2)
    assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert [len(each) for each in seconds.values()] == [2, 2]


def test_a_figure_is_the_median_of_the_turns_ratios() -> None:
    seconds = {"base": [1.0, 2.0, 9.0], "mixed": [2.0, 2.0, 10.0]}
    figure = compare("x", "what", "base", ">= 0.9", ratios=over(seconds, "base", "mixed"), details={})
    assert (figure.ratio, figure.n, figure.holds) == (0.9, 3, True)
    assert (figure.low, figure.high) == pytest.approx((0.7, 0.95))
    assert not compare("x", "what", "base", "<= 0.025", ratios=[0.03], details={}).holds


def test_results_are_kept_by_part_and_make_tables(tmp_path: Path) -> None:
    figure = compare("merging cat", "cat", "PEFT", "<= 0.025", ratios=[0.02], details={"PEFT, ms": 40.0}).as_dict()
    missed = compare("scoring cat", "scoring", "base", ">= 0.95", ratios=[0.8], details={}).as_dict()
    keep(tmp_path, "merging", about() | {"figures": [figure | {"ratio": 9.0}]})
    keep(tmp_path, "merging", about() | {"figures": [figure, figure | {"name": "merging ties"}]})
    keep(tmp_path, "scoring", about() | {"figures": [missed]})
    keep(tmp_path, "latency", about() | {"figures": [], "steps": {"encode": 10.0, "predict": 41.26}})
    results = read_results(tmp_path)
    assert list(results) == ["scoring", "merging", "latency"]
    assert cells(figure) == ("cat", "1/50 (1/50 to 1/50)", "<= 0.025", "PEFT", "1", "yes")
    tables = {name: table.splitlines()[2:] for name, table in engine_tables(results).items()}
    assert tables == {
        "engine": [
            "| scoring | 0.8 (0.8 to 0.8) | >= 0.95, missed | base | m, 2026-01-01 |",
            "| cat | 1/50 (1/50 to 1/50) | <= 0.025 | PEFT | m, 2026-01-01 |",
        ],
    }


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--batch=1", "--batch must be at least 2"),
        ("--library=109", "--library must be at least 110, not 109"),
        ("--new-tokens=0", "--new-tokens must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(
    option: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments([option])
    assert sentence in capsys.readouterr().err
    assert parse_arguments(["--batch=3", "--library=30"])


def test_what_was_measured_is_printed_and_the_page_has_what_was_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = compare("x", "of today", "base", ">= 0.9", ratios=[0.95], details={})
    keep(tmp_path, "latency", about() | {"figures": [figure.as_dict() | {"what": "kept"}]})
    monkeypatch.setattr(command, "open_workbench", lambda _: nullcontext())
    monkeypatch.setattr(command, "describe_machine", lambda _: about())
    monkeypatch.setitem(command.PARTS, "memory", lambda *_: {"figures": [figure]})
    command.main(["--only", "memory", "--out", str(tmp_path), "--json"])
    assert list(json.loads(capsys.readouterr().out)) == ["memory"]
    command.main(["--only", "memory", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "of today" in printed and "kept" not in printed
    assert list(read_results(tmp_path)) == ["latency", "memory"]


def about() -> dict[str, str]:
    return {"at": "2026-01-01T00:00:00+00:00", "machine": "m", "versions": "v", "base_model": "b"}


def test_no_job_of_an_earlier_run_waits_in_the_benchmarks_database(server: str) -> None:
    url = own_database(server)
    try:
        with db.connect(url) as connection:
            add_base_model(connection)
            add_jobs(connection, "in a worker's hands")
            assert claim(connection)
            add_jobs(connection, "for tomorrow", run_at="3000-01-01")
            assert own_database(server) == url
            assert statuses(connection) == {}
    finally:
        drop_database(server, psycopg.conninfo.conninfo_to_dict(url)["dbname"])


@pytest.mark.slow
@pytest.mark.model
def test_the_whole_command_at_its_smallest(tmp_path: Path) -> None:
    sizes = {
        "turns": 1,
        "batch": 3,
        "generating": 2,
        "new-tokens": 3,
        "texts": 3,
        "arriving": 3,
        "queue": 6,
        "library": 44,
        "measured": 4,
    }
    without = set() if find_spec("chromadb") else {"paper"}
    arguments = [sys.executable, "-m", "benchmarks.engine", "--json", "--out", str(tmp_path / "docs" / "performance")]
    arguments += [f"--{name}={size}" for name, size in sizes.items()]
    arguments += ["--only", *(part for part in ORDER if part not in without)]
    environment = {**os.environ, "LORACOMP_HOME": str(tmp_path / "home")}
    try:
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run([sys.executable, "-m", "loracomp", "db", "stop"], env=environment, check=False)
    results = json.loads(done.stdout)
    figures = {figure["name"]: figure for part in results.values() for figure in part["figures"]}
    single = {"paper", "generation", "throughput", "latency", "library loaded", "library read", "measuring"} - without
    single |= {"labelled", "texts", "texts alone", "arrivals", "beginnings", "beside"}
    by_strategy = {f"{part} {strategy}" for part in ("merging", "memory") for strategy in GOALS}
    assert {*figures} == single | by_strategy | {"scoring cat", "scoring linear"}
    assert without or figures["paper"]["details"]["same answer, share"] == 1
    assert all(figures[f"memory {strategy}"]["holds"] for strategy in GOALS)
    assert results["memory"]["held"]["ties"]["masks"] == pytest.approx(1 / 16, abs=1e-3)  # a bit for each bfloat16
