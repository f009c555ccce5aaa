"""`make bench-adapters`: its table, the files that it makes, and the command, tiny."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.many_adapters.filled import rank_one
from benchmarks.many_adapters.report import growing
from benchmarks.pages import as_markdown
from demo_fixtures import ROOT
from loracomp.registry.adapter_files import parse_factors

MS = {"list": 0.2, "route": 900.0, "bi.dim_task": 0.01, "noise": 0.001}
MORE_MS = {"list": 604, "route": 999, "bi.dim_task": 123.4, "noise": 0.1}


def test_what_grows_comes_with_its_times_and_the_slowest_first() -> None:
    table = growing({"1000": {"ms": MORE_MS}, "100": {"ms": MS}})
    assert table == [
        ("milliseconds, by active adapters", "100", "1,000", "times"),
        ("list", "0.2", "604", "3020.0"),
        ("`bi.dim_task`", "0.0", "123", "1234.0"),
    ]


def test_files_are_those_of_adapters() -> None:
    assert {len(each.A) for each in parse_factors(rank_one()).values()} == {1}


@pytest.mark.slow
def test_calls_are_timed_and_written(tmp_path: Path) -> None:
    out = tmp_path / "many.json"
    out.write_text(json.dumps({"100": {"ms": MORE_MS}}))
    printed = run("benchmarks.many_adapters", f"--adapters 20 --repeats 1 --out {out}")
    figures = json.loads(out.read_text())
    assert list(figures) == ["20", "100"] and figures["100"] == {"ms": MORE_MS}, "kept"
    times = figures["20"]["ms"]
    assert {"route 16 jobs", "doctor's checks", "bi.dim_adapter", "read 16 adapters"} <= times.keys()
    assert all(milliseconds > 0 for milliseconds in times.values())
    assert as_markdown(growing(figures)) in printed


def run(module: str, options: str) -> str:
    """The output of a command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORACOMP_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *options.split()],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
