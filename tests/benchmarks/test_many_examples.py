"""`make bench-routing`: made-up libraries, the exact search that it compares with, and the whole command, tiny."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.many_examples.__main__ import exact, recall
from benchmarks.many_examples.made_up import Library, made_up, reader_of
from benchmarks.many_examples.report import by_size
from benchmarks.pages import as_markdown
from demo_fixtures import ROOT
from routing_data import stored, unit


def test_made_up_tasks_are_of_their_own_and_hold_together() -> None:
    tasks = list(made_up(np.random.default_rng(1), 12, 20))
    vectors = np.concatenate(tasks)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    own = np.repeat(np.arange(12), 20)
    assert (own[cosines.argmax(1)] == own).mean() > 0.9
    assert cosines.max() < 1 - 1e-4  # no example twice
    between = cosines[own[:, None] != own]
    assert 0.1 < between.mean() < 0.9  # in the space of real texts, and no island


def test_exact_is_what_comparing_with_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.many_examples.__main__.CHUNK", 70)
    vectors = unit(np.random.default_rng(2).normal(size=(205, 832)))
    library = Library(np.arange(1000, 1200), np.arange(200) // 20, vectors[:200].astype(np.float16), vectors[200:])
    allowed = library.task_ids % 2 == 0
    similarities, places = exact(library, allowed)
    right = stored(vectors[200:]) @ stored(vectors[:200]).T
    right[:, ~allowed] = -1
    np.testing.assert_array_equal(places, np.argsort(-right, axis=1)[:, :30])
    np.testing.assert_allclose(similarities, -np.sort(-right, axis=1)[:, :30], atol=1e-6)
    assert recall(library, places, (places + 1000).tolist()) == 1
    assert recall(library, places, (places[:, :15] + 1000).tolist()) == 0.5


def test_every_hundredth_task_is_the_first_readers_and_every_tenth_the_seconds() -> None:
    readers = [reader_of(task) for task in range(200)]
    assert [readers.count(f"loracomp_bench_{share}") for share in (1, 10, 100)] == [2, 18, 180]


@pytest.mark.slow
def test_the_command_measures_and_writes_its_table(tmp_path: Path) -> None:
    out = tmp_path / "many.json"
    options = f"--examples 2000 --a-task 10 --jobs 32 --memory 64MB --out {out}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORACOMP_")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.many_examples", *options.split()],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    rows = {row["searched_by"]: row for row in figures["2000"]["rows"]}
    assert {"ours, 1 % of the tasks", "ours, 10 % of the tasks", "ours, all of the tasks", "pgvector"} <= rows.keys()
    assert all(row["recall"] > 0.9 for row in rows.values())
    assert rows["ours, 1 % of the tasks"]["same_mix"] == 1
    assert all(part > 0 for name, part in figures["2000"].items() if name.endswith(("_per_s", "_ms", "_mb")))
    assert as_markdown(by_size(figures)) in done.stdout
