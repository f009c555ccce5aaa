"""`make bench-adapters`: its table, the files that it makes, and the command, tiny."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evaluation.report import as_markdown
from benchmarks.many_adapters.filled import rank_one
from benchmarks.many_adapters.report import growing
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


def test_the_table_of_the_page_is_that_of_the_results() -> None:
    assert as_markdown(growing(results("many_adapters"))) in (ROOT / "docs" / "scaling.md").read_text()


def results(name: str) -> Any:
    return json.loads((ROOT / "docs" / "performance" / f"{name}.json").read_text())


def test_files_are_those_of_adapters() -> None:
    assert {len(each.A) for each in parse_factors(rank_one()).values()} == {1}


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


def run(module: str, options: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORACOMP_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *options.split()],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
