"""`make bench-adapters`: its tables, the files that it makes, and both commands, tiny."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.adapter_reading import MODULES, NEW, random_file, reading_table, waiting_table
from benchmarks.evaluation.report import as_markdown
from benchmarks.many_adapters.filled import rank_one
from benchmarks.many_adapters.report import growing
from benchmarks.worker_start import table as start_table
from demo_fixtures import ROOT
from loracomp.registry.adapter_files import parse_factors

MS = {"list": 0.2, "route": 9.0, "bi.dim_task": 0.01, "noise": 0.001}
MORE_MS = {"list": 6.04, "route": 9.9, "bi.dim_task": 12.3, "noise": 0.1}


def test_what_grows_comes_with_its_times_and_the_slowest_first() -> None:
    table = growing({"1000": {"ms": MORE_MS}, "100": {"ms": MS}})
    assert table == [
        ("milliseconds, by active adapters", "100", "1,000", "times"),
        ("`bi.dim_task`", "0.0", "12", "123.0"),
        ("list", "0.2", "6.0", "30.2"),
    ]


def test_the_tables_of_the_pages_are_those_of_the_results() -> None:
    tables = {
        "scaling.md": [growing(results("many_adapters")), reading_table(results("adapter_reading")),
                       waiting_table(results("adapter_reading"))],
        "operations.md": [start_table(results("worker_start"))],
    }  # fmt: skip
    for page, rows in tables.items():
        written = (ROOT / "docs" / page).read_text()
        assert all(as_markdown(table) in written for table in rows)


def results(name: str) -> Any:
    return json.loads((ROOT / "docs" / "performance" / f"{name}.json").read_text())


def test_files_are_those_of_adapters() -> None:
    small = parse_factors(rank_one())
    assert {len(each.A) for each in small.values()} == {1}
    large = parse_factors(random_file(1))
    assert len(large) == 16 * len(MODULES)
    shapes = {(each.B.shape[0], each.A.shape[1]) for each in large.values()}
    assert shapes == set(MODULES.values())


@pytest.mark.slow
def test_calls_are_timed_and_written(tmp_path: Path) -> None:
    out, page = tmp_path / "performance" / "many.json", tmp_path / "scaling.md"
    page.write_text("<!-- table: many-adapters -->\n<!-- end -->\n")
    run("benchmarks.many_adapters", f"--adapters 20 --adapters 40 --repeats 1 --out {out}")
    figures = json.loads(out.read_text())
    assert list(figures) == ["20", "40"]
    for each in figures.values():
        assert {"route 16 jobs", "doctor's checks", "bi.dim_adapter", "read 16 adapters"} <= each["ms"].keys()
        assert all(milliseconds > 0 for milliseconds in each["ms"].values())
    assert as_markdown(growing(figures)) in page.read_text()


@pytest.mark.slow
def test_reading_is_timed_and_written(tmp_path: Path) -> None:
    out, page = tmp_path / "performance" / "reading.json", tmp_path / "scaling.md"
    page.write_text("".join(f"<!-- table: adapter-{name} -->\n<!-- end -->\n" for name in ("reading", "waiting")))
    run("benchmarks.adapter_reading", f"--files 20 --repeats 1 --seconds 1 --out {out}")
    figures = json.loads(out.read_text())
    assert all(rate > 0 for rate in figures["mb_per_s"].values())
    assert {row["new"] for row in figures["waiting"]} == set(NEW)
    assert all(row["jobs_per_s"] > 0 for row in figures["waiting"])
    assert "| 16 |" in page.read_text()


@pytest.mark.slow
def test_a_start_is_timed_and_written(tmp_path: Path) -> None:
    out, page = tmp_path / "performance" / "start.json", tmp_path / "operations.md"
    page.write_text("<!-- table: worker-start -->\n<!-- end -->\n")
    run("benchmarks.worker_start", f"--repeats 1 --out {out}")
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 12
    assert all(row["wall_s"] >= 0 and row["cpu_s"] >= 0 for row in rows)
    assert rows[0]["cpu_s"] > 1
    assert as_markdown(start_table(json.loads(out.read_text()))) in page.read_text()


def run(module: str, options: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORACOMP_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *options.split()],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
